"""A baseline: a detector with names to its columns, and reasons for its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynahugd.baseline.detector import (
    DECISIVE,
    ELSEWHERE,
    MILD,
    USUAL,
    Cluster,
    Detector,
    Floats,
    robust,
    surprise,
    total_surprise,
)
from dynahugd.features import is_mild, is_usual
from dynahugd.features.rows import CALLS, Row

__all__ = ["COMMON", "Baseline", "Reason", "Score", "common_globals", "novelty"]

#: A global of fewer loads is one of a user's own module, not of a library.
COMMON = 5


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
class Baseline:
    """A detector whose columns have names, and what is known of benign loads in general.

    Attributes
    ----------
    columns : names of the columns, in order; some benign load shows each.
    detector : learned from them.
    known_globals : pairs (module, name) that benign pickles resolved.
    metadata : provenance: when, where, from how many loads, versions.
    """

    columns: tuple[str, ...]
    detector: Detector
    known_globals: frozenset[tuple[str, str]]
    metadata: Mapping[str, Any]
    index: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index.update({name: position for position, name in enumerate(self.columns)})

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """The clusters of the detector."""
        return self.detector.clusters

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

    def score(self, row: Row, reasons: bool = True) -> Score:
        """Score one row.

        A partial row tells the least that there was of each system call. Fewer than usual are held
        against nobody: in each cluster they are taken for as many as its median load makes, and
        which cluster the load belongs to is told by what explains it best.
        """
        vector, foreign = self.vector(row.counts)
        if not row.partial:
            label = int(self.detector.assign(vector)[0])
            return self._score(label, vector, vector, foreign, reasons)
        # Of the explanations that the clusters have, the most benign one.
        calls = np.array([name.startswith(CALLS) for name in self.columns])
        raised = []
        for cluster in self.clusters:
            usual = np.zeros(len(self.columns))
            usual[cluster.seen] = cluster.median
            raised.append(np.where(calls, np.maximum(vector, usual), vector))
        scores = [
            self._score(label, vector, counts, foreign, False)
            for label, counts in enumerate(raised)
        ]
        best = max(range(len(scores)), key=lambda i: (scores[i].p_value, -scores[i].score))
        return self._score(best, vector, raised[best], foreign, reasons)

    def _score(
        self, label: int, shown: Floats, counts: Floats, foreign: dict[str, int], reasons: bool
    ) -> Score:
        """The score in one cluster: of the columns ``shown`` by the row, and of the ``counts``."""
        cluster = self.clusters[label]
        novel = {
            self.columns[i]: int(shown[0, i])
            for i in np.flatnonzero(self.detector.novel(shown, label)[0])
        } | foreign
        presence = np.array([novelty(name, name in self.index) for name in novel])
        each = surprise(presence, np.array(list(novel.values()), float))
        score = float(cluster.strangeness(counts)[0] + total_surprise(presence, each))
        weights = dict(zip(novel, each.tolist(), strict=True))
        found = self._reasons(cluster, counts[0], novel, weights) if reasons else ()
        return Score(score, self.detector.p_value(score, label), cluster.name, found)

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


def common_globals(
    loads: Iterable[set[tuple[str, str]]], least: int = COMMON
) -> frozenset[tuple[str, str]]:
    """Globals that at least so many loads resolved."""
    counted = Counter(pair for pairs in loads for pair in pairs)
    return frozenset(pair for pair, count in counted.items() if count >= least)


def novelty(column: str, elsewhere: bool) -> float:
    """What the presence of a column adds that no benign load of the cluster showed.

    ``elsewhere``: a load of another cluster did.
    """
    if is_mild(column):
        return MILD
    if is_usual(column):
        return USUAL
    return ELSEWHERE if elsewhere else DECISIVE
