"""Rows in groups, each group in a fold: read by chunks, so that many rows take no more memory.

What has to be exact, which features are ever shown and in which range, is tallied over all rows in
one pass for all folds; what is estimated (means, covariances, kernels) is estimated on samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Counts", "Groups", "Indices", "Mask", "Tally", "chunks"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
#: Half the memory for rows whose counts are stored in single precision.
Counts = npt.NDArray[np.float64] | npt.NDArray[np.float32]

#: Rows that are worked on at once.
_CHUNK = 1 << 15


def chunks(counts: Counts, rows: Indices | None = None) -> Iterator[tuple[Indices, Floats]]:
    """Indices of some rows, or all, not too many at once, and their counts in double precision."""
    rows = np.arange(len(counts)) if rows is None else rows
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        yield part, np.asarray(counts[part], np.float64)


@dataclass(frozen=True, slots=True)
class Tally:
    """What the groups of some rows show, by fold.

    Attributes
    ----------
    groups : shape (folds,): how many there are.
    showing : shape (folds, features): how many of them show a feature.
    low, high : shape (folds, features): range of the counts; of no groups, inf and -inf.
    rows : shape (folds,).
    """

    groups: Indices
    showing: Indices
    low: Floats
    high: Floats
    rows: Indices


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of counts, which group each is of, and which fold each group is in.

    Attributes
    ----------
    counts : shape (rows, features).
    owner : shape (rows,): index of the group.
    fold : shape (groups,).
    folds : how many there are.
    """

    counts: Counts
    owner: Indices
    fold: Indices
    folds: int

    def fold_of(self, rows: Indices) -> Indices:
        """Fold of each of some rows."""
        return self.fold[self.owner[rows]]

    def tally(self, rows: Indices) -> Tally:
        """Count what some rows show. The rows of one group are looked at together."""
        shape = self.folds, self.counts.shape[1]
        number, showing = np.zeros(self.folds, np.intp), np.zeros(shape, np.intp)
        low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
        rows = rows[np.argsort(self.owner[rows], kind="stable")]
        owner = self.owner[rows]
        for part in np.split(rows, np.unique(np.searchsorted(owner, owner[_CHUNK::_CHUNK]))):
            if not part.size:
                continue
            counts, owners = self.counts[part], self.owner[part]
            starts = np.flatnonzero(np.diff(owners, prepend=-1))
            least = np.minimum.reduceat(counts, starts, axis=0)
            most = np.maximum.reduceat(counts, starts, axis=0)
            folds = self.fold[owners[starts]]
            for fold in np.unique(folds):
                own = folds == fold
                number[fold] += own.sum()
                showing[fold] += (most[own] > 0).sum(axis=0)
                low[fold] = np.minimum(low[fold], least[own].min(axis=0))
                high[fold] = np.maximum(high[fold], most[own].max(axis=0))
        held = np.bincount(self.fold_of(rows), minlength=self.folds)
        return Tally(number, showing, low, high, held)
