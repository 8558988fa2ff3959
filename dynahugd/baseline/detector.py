"""The run-time half of the detector: a few lines of numpy that score rows.

A row is sent to the cluster whose centre is nearest in its context (format, import work). There its
counts become robust, whitened coordinates u, and an RBF one-class SVM gives

    d(u) = sum_i a_i exp(-g |u - s_i|^2) - rho      (scikit-learn's ``decision_function``)

The score used is s = log(rho) - log(sum_i a_i exp(-g |u - s_i|^2)), computed in the log domain: it
is positive exactly where d is negative, and far away, where d saturates at -rho, it goes on growing
with the squared distance. To it each column adds that no benign load of the cluster ever showed:
these have no variance to be measured by, and are the strongest evidence there is.

p-values are split conformal (Vovk et al., *Algorithmic Learning in a Random World*, 2005): the
share of the cluster's held-out benign loads that score at least as high. Beyond the upper fiftieth
of these the tail is taken as exponential (peaks over threshold), so that scores keep their rank;
but a p-value is never below the share of all held-out loads, of any cluster, that score as high,
but for the few that a recording may hold without being benign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = [
    "DECISIVE",
    "ELSEWHERE",
    "MILD",
    "USUAL",
    "Calibration",
    "Cluster",
    "Detector",
    "Floats",
    "by_label",
    "in_context",
    "nearest",
    "robust",
    "surprise",
    "total_surprise",
]

Floats = npt.NDArray[np.float64]

#: What a column adds to the score for its presence when no benign load ever showed it, when only
#: loads of other clusters did, when it is usual, and when it tells little; see ``surprise``.
DECISIVE = 50.0
ELSEWHERE = 20.0
USUAL = 2.0
MILD = 0.5

#: The tail of the scores falls by 1 / e in at least so much: held-out loads of one recording are
#: more alike than those of other hosts are to them.
TAIL = 2.0

#: Share of held-out loads that may be as strange as they like: a recording that holds one attack
#: must not make the baseline deaf to all others.
STRAY = 0.001

_FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sorted scores of held-out benign loads, shape (n,)."""

    scores: Floats

    def p_value(self, scores: Floats) -> Floats:
        """Share of loads like these that score at least as high, in (0, 1]; shapes (m,) -> (m,)."""
        n = self.scores.size
        tail = max(n // 50, min(n, 5))
        start = float(self.scores[n - tail])
        p = (n - np.searchsorted(self.scores, scores, side="left") + 1) / (n + 1)
        beyond = scores > start
        if beyond.any():
            # The median, unlike the mean, does not follow a few loads that are far out.
            scale = max(float(np.median(self.scores[n - tail :] - start)) / math.log(2), TAIL)
            falling = (tail + 1) / (n + 1) * np.exp(-(scores[beyond] - start) / scale)
            p[beyond] = np.maximum(falling, _FLOOR)
        return np.asarray(p)

    def exceeded(self, scores: Floats) -> Floats:
        """Share of the held-out loads that score at least as high, strays aside, in [0, 1)."""
        n = self.scores.size
        above = n - np.searchsorted(self.scores, scores, side="left")
        return np.asarray(np.maximum(above - math.ceil(STRAY * n), 0) / (n + 1))


def robust(counts: Floats, median: Floats, scale: Floats) -> Floats:
    """z = (count - median) / scale, then sign(z) log(1 + |z|): counts span five decades."""
    z = (counts - median) / scale
    return np.sign(z) * np.log1p(np.abs(z))


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster of benign behaviour.

    Attributes
    ----------
    name : dominant format and rank.
    centre : shape (contexts,), in standardised log counts.
    seen : bool, shape (columns,): columns that some benign row of the cluster shows.
    low, high : shape (columns,): range of the counts.
    median, scale, mean : shape (seen,): of the robust coordinates.
    whitening : shape (seen, seen).
    vectors, weights : support vectors, shape (m, seen), and their coefficients, shape (m,).
    rho, gamma : offset and kernel width.
    loads, rows : how many benign loads and rows it was learned from.
    calibration : of its own loads, or of all when these are too few.
    """

    name: str
    centre: Floats
    seen: npt.NDArray[np.bool_]
    low: Floats
    high: Floats
    median: Floats
    scale: Floats
    mean: Floats
    whitening: Floats
    vectors: Floats
    weights: Floats
    rho: float
    gamma: float
    loads: int
    rows: int
    calibration: Calibration
    _squares: Floats = field(init=False, repr=False)
    _log_weights: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Most batches bring one row to score: what does not depend on it would be half of the work.
        object.__setattr__(self, "_squares", (self.vectors**2).sum(axis=1))
        object.__setattr__(self, "_log_weights", np.log(self.weights))

    def deviations(self, counts: Floats) -> Floats:
        """Robust coordinates of counts, less their means; shapes (n, columns) -> (n, seen)."""
        f = robust(counts[:, self.seen], self.median, self.scale)
        return np.asarray(f - self.mean)

    def coordinates(self, counts: Floats) -> Floats:
        """Whitened coordinates of counts, shapes (n, columns) -> (n, seen)."""
        return np.asarray(self.deviations(counts) @ self.whitening)

    def _log_kernel(self, u: Floats) -> Floats:
        distance = (u**2).sum(axis=1)[:, None] + self._squares - 2 * u @ self.vectors.T
        exponent = self._log_weights - self.gamma * np.maximum(distance, 0)
        top = exponent.max(axis=1)
        return np.asarray(top + np.log(np.exp(exponent - top[:, None]).sum(axis=1)))

    def decision(self, counts: Floats) -> Floats:
        """scikit-learn's ``decision_function``; shapes (n, columns) -> (n,)."""
        return np.asarray(np.exp(self._log_kernel(self.coordinates(counts))) - self.rho)

    def strangeness(self, counts: Floats) -> Floats:
        """s = log rho - log sum a k, positive outside; shapes (n, columns) -> (n,)."""
        return np.asarray(np.log(self.rho) - self._log_kernel(self.coordinates(counts)))


@dataclass(frozen=True, slots=True)
class Detector:
    """All clusters, and which rows go to which.

    Attributes
    ----------
    contexts : indices of the context columns.
    context_mean, context_scale : shape (contexts,), of log1p counts.
    clusters : at least one.
    flags : indices of the columns that tell kinds apart (formats) and are 0 or 1; may be none.
    shown : bool, shape (flags, columns): what some benign rows of each kind showed, in any cluster.
    pool : scores of the held-out loads of all clusters.
    presence : shape (columns,): what a column's presence adds where its cluster never shows it.
    """

    contexts: npt.NDArray[np.intp]
    context_mean: Floats
    context_scale: Floats
    clusters: tuple[Cluster, ...]
    flags: npt.NDArray[np.intp]
    shown: npt.NDArray[np.bool_]
    pool: Calibration
    presence: Floats
    _centres: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_centres", np.stack([c.centre for c in self.clusters]))

    def assign(self, counts: Floats) -> npt.NDArray[np.intp]:
        """Index of the nearest cluster of each row; shapes (n, columns) -> (n,)."""
        context = in_context(counts, self.contexts, self.context_mean, self.context_scale)
        return nearest(context, self._centres)

    def novel(self, counts: Floats, label: int) -> Floats:
        """The counts of columns that benign rows like each never showed; others are 0.

        Like it: of the same cluster and the same kind. A cluster may hold several formats, and
        what one of them does is no excuse for another.
        """
        known = self.clusters[label].seen
        if self.flags.size:
            known = known & ((counts[:, self.flags] > 0) @ self.shown)
        return np.asarray(counts * ~known)

    def score(self, counts: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
        """Scores, any real number, larger is stranger, and clusters; (n, columns) -> (n,), (n,)."""
        labels = self.assign(counts)
        scores = np.empty(len(counts))
        for label, rows in by_label(labels):
            each = surprise(self.presence, self.novel(counts[rows], label))
            strange = self.clusters[label].strangeness(counts[rows])
            scores[rows] = strange + total_surprise(self.presence, each)
        return scores, labels

    def p_value(self, scores: Floats, labels: npt.NDArray[np.intp]) -> Floats:
        """The p-values, in (0, 1], of scores in clusters; shapes (n,), (n,) -> (n,)."""
        p = self.pool.exceeded(scores)
        for label, rows in by_label(labels):
            own = self.clusters[label].calibration.p_value(scores[rows])
            p[rows] = np.maximum(p[rows], own)
        return p


def by_label(labels: npt.NDArray[np.intp]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Each label that there is, and the indices of the rows that have it."""
    for label in sorted(set(labels.tolist())):
        yield label, np.flatnonzero(labels == label)


def in_context(
    counts: Floats, contexts: npt.NDArray[np.intp], mean: Floats, scale: Floats
) -> Floats:
    """Standardised log counts of the context columns; (n, columns) -> (n, contexts)."""
    return np.asarray((np.log1p(counts[:, contexts]) - mean) / scale)


def nearest(points: Floats, centres: Floats) -> npt.NDArray[np.intp]:
    """Index of the nearest centre of each point; shapes (n, d), (k, d) -> (n,)."""
    distance = (centres**2).sum(axis=1)[None, :] - 2 * points @ centres.T
    return np.asarray(distance.argmin(axis=1))


def surprise(weights: Floats, counts: Floats) -> Floats:
    """What each column adds to the score that no benign load of the cluster showed.

    ``weights`` is what presence adds (:func:`novelty`), shape (columns,); ``counts`` has shape
    (..., columns), and so has the result. An e-fold of the count adds a tenth. Of ordinary work
    little is nothing, but a flood tells: there the squared log counts, as it does for columns that
    the cluster knows.
    """
    folds = np.log(np.maximum(counts, 1))
    each = weights * (1 + 0.1 * folds) + (weights == MILD) * 0.1 * folds**2
    return np.asarray(each * (counts > 0))


def total_surprise(weights: Floats, each: Floats) -> Floats:
    """What they add together, shapes (columns,), (..., columns) -> (...).

    Evidence that decides adds up. Ordinary work comes in company (a process, the pipe to it, the
    search for its program, the libraries that it reads) and is told once: by its Euclidean norm.
    """
    ordinary = weights <= USUAL
    decisive = (each * ~ordinary).sum(axis=-1)
    return np.asarray(decisive + np.sqrt(((each * ordinary) ** 2).sum(axis=-1)))
