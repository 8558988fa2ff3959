"""The run-time half of the detector: a few lines of numpy that score a row.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.features import is_mild, is_usual
from dynahugd.features.rows import Row

__all__ = ["DECISIVE", "MILD", "Baseline", "Calibration", "Cluster", "Reason", "Score", "robust"]

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
class Reason:
    """Why a row is far out.

    Attributes
    ----------
    feature : name of the column.
    value : its count in the row.
    low, high : range among the cluster's benign rows.
    loads : number of these loads.
    weight : its part of the score, for ranking.
    """

    feature: str
    value: int
    low: int
    high: int
    loads: int
    weight: float


@dataclass(frozen=True, slots=True)
class Score:
    """How unlike benign loads a row is: score (any real, larger is stranger), p-value, cluster."""

    score: float
    p_value: float
    cluster: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sorted scores of held-out benign loads, shape (n,)."""

    scores: Floats

    def p_value(self, score: float) -> float:
        """Share of loads like these that score at least this high, in (0, 1]."""
        n = self.scores.size
        tail = max(n // 50, min(n, 5))
        start = float(self.scores[n - tail])
        if score <= start:
            above = n - int(np.searchsorted(self.scores, score, side="left"))
            return (above + 1) / (n + 1)
        # The median, unlike the mean, does not follow a few loads that are far out.
        scale = max(float(np.median(self.scores[n - tail :] - start)) / math.log(2), TAIL)
        return max((tail + 1) / (n + 1) * math.exp(-(score - start) / scale), _FLOOR)

    def exceeded(self, score: float) -> float:
        """Share of the held-out loads that score at least this high, strays aside, in [0, 1)."""
        n = self.scores.size
        above = n - int(np.searchsorted(self.scores, score, side="left"))
        return max(above - math.ceil(STRAY * n), 0) / (n + 1)


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

    def coordinates(self, counts: Floats) -> Floats:
        """Whitened coordinates of counts, shapes (n, columns) -> (n, seen)."""
        f = robust(counts[:, self.seen], self.median, self.scale)
        return np.asarray((f - self.mean) @ self.whitening)

    def _log_kernel(self, u: Floats) -> Floats:
        distance = (
            np.sum(u**2, axis=1)[:, None]
            + np.sum(self.vectors**2, axis=1)[None, :]
            - 2 * u @ self.vectors.T
        )
        exponent = np.log(self.weights)[None, :] - self.gamma * np.maximum(distance, 0)
        top = exponent.max(axis=1)
        return np.asarray(top + np.log(np.exp(exponent - top[:, None]).sum(axis=1)))

    def decision(self, counts: Floats) -> Floats:
        """scikit-learn's ``decision_function``; shapes (n, columns) -> (n,)."""
        return np.asarray(np.exp(self._log_kernel(self.coordinates(counts))) - self.rho)

    def strangeness(self, counts: Floats) -> Floats:
        """s = log rho - log sum a k, positive outside; shapes (n, columns) -> (n,)."""
        return np.asarray(np.log(self.rho) - self._log_kernel(self.coordinates(counts)))


@dataclass(frozen=True, slots=True)
class Baseline:
    """All clusters, and what is known of benign loads in general.

    Attributes
    ----------
    columns : names of the columns, in order.
    contexts : indices of the context columns.
    context_mean, context_scale : shape (contexts,), of log1p counts.
    pool : scores of the held-out loads of all clusters.
    known_globals : pairs (module, name) that benign pickles resolved.
    metadata : provenance: when, where, from how many loads, versions.
    """

    columns: tuple[str, ...]
    contexts: npt.NDArray[np.intp]
    context_mean: Floats
    context_scale: Floats
    clusters: tuple[Cluster, ...]
    pool: Calibration
    known_globals: frozenset[tuple[str, str]]
    metadata: Mapping[str, Any]
    index: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index.update({name: position for position, name in enumerate(self.columns)})

    @property
    def known_packages(self) -> frozenset[str]:
        """Top-level packages of the known globals."""
        return frozenset(module.split(".", 1)[0] for module, _ in self.known_globals)

    def vector(self, counts: Mapping[str, int]) -> tuple[Floats, dict[str, int]]:
        """Counts in column order, shape (1, columns), and the columns that it does not have."""
        vector = np.zeros((1, len(self.columns)))
        foreign = {}
        for name, count in counts.items():
            position = self.index.get(name)
            if position is None:
                foreign[name] = count
            else:
                vector[0, position] = count
        return vector, foreign

    def assign(self, vectors: Floats) -> npt.NDArray[np.intp]:
        """Index of the nearest cluster of each row; shapes (n, columns) -> (n,)."""
        context = (np.log1p(vectors[:, self.contexts]) - self.context_mean) / self.context_scale
        centres = np.stack([cluster.centre for cluster in self.clusters])
        distance = ((context[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
        return np.asarray(distance.argmin(axis=1))

    def score(self, row: Row, reasons: bool = True) -> Score:
        """Score one row."""
        vector, foreign = self.vector(row.counts)
        cluster = self.clusters[int(self.assign(vector)[0])]
        strangeness = float(cluster.strangeness(vector)[0])
        novel = {
            self.columns[i]: int(vector[0, i])
            for i in np.flatnonzero((vector[0] > 0) & ~cluster.seen)
        } | foreign
        presence = np.array([novelty(name, name in self.index) for name in novel])
        each = surprise(presence, np.array(list(novel.values()), float))
        score = strangeness + float(total_surprise(presence, each))
        weights = dict(zip(novel, each.tolist(), strict=True))
        p_value = max(cluster.calibration.p_value(score), self.pool.exceeded(score))
        found = self._reasons(cluster, vector[0], novel, weights) if reasons else ()
        return Score(score, p_value, cluster.name, found)

    def _reasons(
        self, cluster: Cluster, vector: Floats, novel: dict[str, int], weights: dict[str, float]
    ) -> tuple[Reason, ...]:
        found = [
            Reason(name, count, 0, 0, cluster.loads, weights[name]) for name, count in novel.items()
        ]
        f = np.abs(robust(vector[cluster.seen], cluster.median, cluster.scale) - cluster.mean)
        positions = np.flatnonzero(cluster.seen)
        outside = (vector < cluster.low) | (vector > cluster.high)
        for place in np.argsort(f)[::-1][:5]:
            i = positions[place]
            if outside[i]:
                low, high = int(cluster.low[i]), int(cluster.high[i])
                found.append(
                    Reason(
                        self.columns[i], int(vector[i]), low, high, cluster.loads, float(f[place])
                    )
                )
        found.sort(key=lambda reason: -reason.weight)
        return tuple(found[:5])


def novelty(column: str, elsewhere: bool) -> float:
    """What the presence of a column adds that no benign load of the cluster showed.

    ``elsewhere``: a load of another cluster did.
    """
    if is_mild(column):
        return MILD
    if is_usual(column):
        return USUAL
    return ELSEWHERE if elsewhere else DECISIVE


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
