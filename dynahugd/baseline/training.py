"""Training: from rows of benign loads to a baseline. Needs scikit-learn, as nothing else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.baseline.detector import Floats
from dynahugd.baseline.estimator import ClusteredOneClassSVM
from dynahugd.baseline.model import Baseline, novelty
from dynahugd.errors import DynahugError
from dynahugd.features import Row, is_context, is_mild, is_ordinary

__all__ = ["NUMBERS", "train"]

#: Numbers of clusters to choose from.
NUMBERS = (1, 2, 4, 8, 12, 16, 24)
#: Of a load's rows, which may be thousands, so many teach.
_ROWS_PER_LOAD = 12
#: Variance of a column's robust coordinate that comes on top of what the recording shows, since its
#: hosts are not all hosts: of ordinary work, which is a matter of machine, moment and libraries (a
#: contended lock, a slow disk, another allocator), an e-fold more or less says nothing.
_VARIANCE, _VARIANCE_MILD = 0.05, 1.0
#: Narrower kernels found no more of what we try, and more false alarms on another recording.
_GAMMA = 0.2
#: So many loads make evidence ordinary in a cluster, or in a format.
_QUORUM = 3
_FORMAT = "format."


def train(
    loads: Sequence[Sequence[Row]],
    known_globals: frozenset[tuple[str, str]],
    metadata: Mapping[str, Any],
    clusters: int | Sequence[int] = NUMBERS,
    seed: int = 0,
) -> Baseline:
    """Train a baseline.

    Parameters
    ----------
    loads : the rows of each benign load.
    clusters, seed : of :class:`ClusteredOneClassSVM`.

    Raises
    ------
    DynahugError : with fewer than 50 loads.
    """
    if len(loads) < 50:
        raise DynahugError(f"{len(loads)} loads are too few for a baseline: record at least 50")
    columns = tuple(sorted({name for rows in loads for row in rows for name in row.counts}))
    matrix, owner = _matrix(loads, columns)
    teaching, typical = _teaching(loads)
    estimator = ClusteredOneClassSVM(
        clusters=clusters,
        gamma=_GAMMA,
        variance=np.array([_VARIANCE_MILD if is_mild(name) else _VARIANCE for name in columns]),
        presence=(
            np.array([novelty(name, True) for name in columns]),
            np.array([novelty(name, False) for name in columns]),
        ),
        contexts=np.array([i for i, name in enumerate(columns) if is_context(name)], np.intp),
        flags=[i for i, name in enumerate(columns) if name.startswith(_FORMAT)],
        quorum=np.array([1 if is_ordinary(name) else _QUORUM for name in columns]),
        ordinary=np.array([is_ordinary(name) for name in columns]),
        random_state=seed,
    )
    estimator.fit(matrix, groups=owner, teaching=teaching, typical=typical)
    detector = estimator.detector_
    labels = detector.assign(matrix)
    named = tuple(
        replace(cluster, name=f"{_format(matrix[labels == label], columns)}-{label}")
        for label, cluster in enumerate(detector.clusters)
    )
    told = dict(metadata) | {
        "held_out_alarms": {str(n): alarms for n, alarms in estimator.alarms_.items()}
    }
    return Baseline(columns, replace(detector, clusters=named), known_globals, told)


def _format(matrix: Floats, columns: tuple[str, ...]) -> str:
    """The format of most rows."""
    formats = [i for i, name in enumerate(columns) if name.startswith(_FORMAT)]
    most = formats[int((matrix[:, formats] > 0).sum(axis=0).argmax())]
    return columns[most].removeprefix(_FORMAT)


def _matrix(
    loads: Sequence[Sequence[Row]], columns: tuple[str, ...]
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Counts of all rows, shape (rows, columns), and the load of each row."""
    index = {name: position for position, name in enumerate(columns)}
    owner = np.repeat(np.arange(len(loads)), [len(rows) for rows in loads])
    matrix = np.zeros((owner.size, len(columns)))
    for position, row in enumerate(row for rows in loads for row in rows):
        for name, count in row.counts.items():
            matrix[position, index[name]] = count
    return matrix, owner


def _teaching(
    loads: Sequence[Sequence[Row]],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows teach, evenly spaced over each load, and which is the last of a whole load.

    A load has a row for each look at it: without this a slow one would outweigh a thousand others.
    """
    teaching, typical = [], []
    for rows in loads:
        chosen = np.zeros(len(rows), bool)
        chosen[np.linspace(0, len(rows) - 1, min(_ROWS_PER_LOAD, len(rows))).astype(int)] = True
        last = np.zeros(len(rows), bool)
        last[max(i for i, row in enumerate(rows) if row.window == "whole")] = True
        teaching.append(chosen | last)
        typical.append(last)
    return np.concatenate(teaching), np.concatenate(typical)
