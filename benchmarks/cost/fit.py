"""One fit of a detector, in a process of its own: seconds, memory, and how well it tells.

    python -m benchmarks.cost.fit FILE METHOD ROWS SEED

The file holds ``benign`` and ``malicious`` rows of counts. A fifth of the benign ones is held out,
another one by each seed.
More to learn from than there are come from them by bootstrap, each count multiplied by a random
factor. The AUC is over held-out and malicious rows.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.cost.machine import available_memory
from benchmarks.cost.processes import mebibytes
from benchmarks.paper import METHODS as OF_THE_PAPER
from benchmarks.paper import Floats, Judge, Method, clustered

__all__ = ["METHODS", "Fit", "fit"]

#: Of the bootstrap's factors, in e-folds.
_DEVIATION = 0.1


def _presence_and_counts(counts: Floats, scaler: StandardScaler) -> Floats:
    return np.hstack([(counts > 0).astype(float), scaler.transform(counts)])


def _nystroem(learned: Floats, seed: int) -> Judge:
    """The paper's features and kernel, approximated: linear in the rows."""
    scaler = StandardScaler(with_mean=False).fit(learned)
    model = make_pipeline(
        Nystroem(gamma=0.1, n_components=300, random_state=seed),
        SGDOneClassSVM(nu=0.01, random_state=seed),
    ).fit(_presence_and_counts(learned, scaler))

    def judge(counts: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
        scores = -model.decision_function(_presence_and_counts(counts, scaler))
        return scores > 0, scores

    return judge


METHODS: dict[str, Method] = {
    "ClusteredOneClassSVM": OF_THE_PAPER["dynahugd"],
    "ClusteredOneClassSVM, nothing sampled": clustered(max_rows=10**9, max_sample=10**9),
    "OneClassSVM, all rows": OF_THE_PAPER["the paper's one-class SVM"],
    "Nystroem, SGDOneClassSVM": _nystroem,
}


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit has taken: seconds, resident MiB at most, and its AUC."""

    seconds: float
    peak: float
    auc: float


def _drawn(known: Floats, rows: int, rng: np.random.Generator) -> Floats:
    """So many rows to learn from."""
    if rows <= len(known):
        return known[:rows]
    drawn = known[rng.choice(len(known), rows)]
    for part in np.array_split(drawn, max(rows // 10_000, 1)):  # views, small in memory
        part *= np.exp(rng.normal(0, _DEVIATION, part.shape))
        np.rint(part, out=part)
    return drawn


def fit(file: str, method: str, rows: int, seed: int) -> Fit:
    """Learn from so many rows."""
    with np.load(file) as arrays:
        benign, malicious = arrays["benign"], arrays["malicious"]
    rng = np.random.default_rng(seed)
    held_out, known = np.split(rng.permutation(benign), [len(benign) // 5])
    learned = _drawn(known, rows, rng)
    begun = time.perf_counter()
    judge = METHODS[method](learned, seed)
    taken = time.perf_counter() - begun
    truth = np.repeat([0, 1], [len(held_out), len(malicious)])
    scores = np.concatenate([judge(held_out)[1], judge(malicious)[1]])
    # Not getrusage(2): its ru_maxrss begins with that of the process that started this one.
    return Fit(taken, mebibytes(os.getpid(), "VmHWM"), float(roc_auc_score(truth, scores)))


if __name__ == "__main__":
    # Better refused here than another process killed.
    resource.setrlimit(resource.RLIMIT_AS, (available_memory() * 3 // 4,) * 2)
    print(json.dumps(asdict(fit(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
