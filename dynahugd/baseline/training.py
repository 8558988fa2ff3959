"""Training: from rows of benign loads to a baseline. Needs scikit-learn, as nothing else does."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynahugd.baseline.estimator import ClusteredOneClassSVM
from dynahugd.baseline.groups import Counts, Mask, chunks
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
    loads: Iterable[Sequence[Row]],
    known_globals: frozenset[tuple[str, str]],
    metadata: Mapping[str, Any],
    clusters: int | Sequence[int] = NUMBERS,
    seed: int = 0,
) -> Baseline:
    """Train a baseline.

    Parameters
    ----------
    loads : the rows of each benign load; gone through once, and not kept.
    clusters, seed : of :class:`ClusteredOneClassSVM`.

    Raises
    ------
    DynahugError : with fewer than 50 loads.
    """
    table = _Table()
    for rows in loads:
        table.add(rows)
    if table.loads < 50:
        raise DynahugError(f"{table.loads} loads are too few for a baseline: record at least 50")
    columns, matrix = table.matrix()
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
    estimator.fit(
        matrix,
        groups=np.array(table.owner),
        teaching=np.array(table.teaching, bool),
        typical=np.array(table.typical, bool),
    )
    detector = estimator.detector_
    labels = np.concatenate([detector.assign(counts) for _, counts in chunks(matrix)])
    named = tuple(
        replace(cluster, name=f"{_format(matrix, labels == label, columns)}-{label}")
        for label, cluster in enumerate(detector.clusters)
    )
    told = dict(metadata) | {
        "held_out_alarms": {str(n): alarms for n, alarms in estimator.alarms_.items()}
    }
    return Baseline(columns, replace(detector, clusters=named), known_globals, told)


def _format(matrix: Counts, own: Mask, columns: tuple[str, ...]) -> str:
    """The format of most of the rows that are a cluster's own."""
    formats = [i for i, name in enumerate(columns) if name.startswith(_FORMAT)]
    most = formats[int(np.argmax([(matrix[own, i] > 0).sum() for i in formats]))]
    return columns[most].removeprefix(_FORMAT)


@dataclass(slots=True)
class _Table:
    """Rows of all loads without their zeros: 8 bytes a count, a quarter of what mappings take.

    Attributes
    ----------
    index : position of each column, as they come up.
    places, counts : columns and counts of all rows, one row after the other.
    lengths, owner : of each row: how many counts it has, and which load it is of.
    teaching : which rows teach, evenly spaced over each load: a load has a row for each look at it,
        and a slow one would outweigh a thousand others.
    typical : which row is the last of a whole load.
    """

    loads: int = 0
    index: dict[str, int] = field(default_factory=dict)
    places: array[int] = field(default_factory=lambda: array("i"))
    counts: array[float] = field(default_factory=lambda: array("f"))
    lengths: array[int] = field(default_factory=lambda: array("i"))
    owner: array[int] = field(default_factory=lambda: array("i"))
    teaching: bytearray = field(default_factory=bytearray)
    typical: bytearray = field(default_factory=bytearray)

    def add(self, rows: Sequence[Row]) -> None:
        """Take in the rows of a load."""
        last = max(i for i, row in enumerate(rows) if row.window == "whole")
        spaced = np.linspace(0, len(rows) - 1, min(_ROWS_PER_LOAD, len(rows))).astype(int)
        chosen = {last, *spaced.tolist()}
        for place, row in enumerate(rows):
            self.places.extend(self.index.setdefault(c, len(self.index)) for c in row.counts)
            self.counts.extend(row.counts.values())
            self.lengths.append(len(row.counts))
            self.owner.append(self.loads)
            self.teaching.append(place in chosen)
            self.typical.append(place == last)
        self.loads += 1

    def matrix(self) -> tuple[tuple[str, ...], Counts]:
        """Columns in order, and counts in single precision (exact to 2^24), (rows, columns)."""
        columns = tuple(sorted(self.index))
        order = np.empty(len(columns), np.intp)
        order[[self.index[name] for name in columns]] = np.arange(len(columns))
        lengths = np.array(self.lengths)
        ends = np.cumsum(lengths, dtype=np.intp)
        matrix = np.zeros((len(lengths), len(columns)), np.float32)
        places, counts = np.frombuffer(self.places, np.intc), np.frombuffer(self.counts, np.float32)
        for part in np.array_split(np.arange(len(lengths)), len(lengths) // 10_000 + 1):
            flat = slice(ends[part[0]] - lengths[part[0]], ends[part[-1]])
            matrix[np.repeat(part, lengths[part]), order[places[flat]]] = counts[flat]
        return columns, matrix
