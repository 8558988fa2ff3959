"""A baseline: a detector with names to its columns, and reasons for its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.baseline.detector import (
    DECISIVE,
    ELSEWHERE,
    MILD,
    USUAL,
    Cluster,
    Detector,
    Floats,
    by_label,
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
    _presence: Floats = field(init=False, repr=False)
    #: Calls that the median load of each cluster makes, shape (clusters, columns); else 0.
    _usual: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.index.update({name: position for position, name in enumerate(self.columns)})
        presence = np.array([novelty(name, True) for name in self.columns])
        object.__setattr__(self, "_presence", presence)
        usual = np.zeros((len(self.clusters), len(self.columns)))
        for label, cluster in enumerate(self.clusters):
            usual[label, cluster.seen] = cluster.median
        usual *= [name.startswith(CALLS) for name in self.columns]
        object.__setattr__(self, "_usual", usual)

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """The clusters of the detector."""
        return self.detector.clusters

    def vector(self, counts: Mapping[str, int]) -> tuple[Floats, dict[str, int]]:
        """Counts in column order, shape (1, columns), and the columns that it does not have."""
        matrix, foreign = self._matrix([counts])
        return matrix, foreign[0]

    def _matrix(self, rows: Sequence[Mapping[str, int]]) -> tuple[Floats, list[dict[str, int]]]:
        matrix = np.zeros((len(rows), len(self.columns)))
        foreign: list[dict[str, int]] = []
        for i, counts in enumerate(rows):
            places, known, others = [], [], {}
            for name, count in counts.items():
                place = self.index.get(name)
                if place is None:
                    others[name] = count
                else:
                    places.append(place)
                    known.append(count)
            matrix[i, places] = known
            foreign.append(others)
        return matrix, foreign

    def score(self, row: Row, reasons: bool = True) -> Score:
        """Score one row."""
        return self.scores([row], reasons)[0]

    def scores(self, rows: Sequence[Row], reasons: bool = True) -> list[Score]:
        """Score rows: each as if it were alone, but together they take a fraction of the time.

        A partial row tells the least that there was of each system call. Fewer than usual are held
        against nobody: in each cluster they are taken for as many as its median load makes, and
        which cluster the load belongs to is told by what explains it best.
        """
        matrix, foreign = self._matrix([row.counts for row in rows])
        partial = np.array([row.partial for row in rows], bool)
        labels = self.detector.assign(matrix)
        counts = matrix
        if partial.any():
            counts = matrix.copy()
            for i in np.flatnonzero(partial):
                labels[i], counts[i] = self._explained(matrix[i : i + 1], foreign[i])
        return self._scores(labels, matrix, counts, foreign, reasons)

    def _explained(
        self, vector: Floats, foreign: dict[str, int]
    ) -> tuple[np.intp, npt.NDArray[np.float64]]:
        """Of the explanations of a partial row that the clusters have, the most benign one.

        That is the cluster, and the counts, shape (columns,), that it takes the row for.
        """
        raised = np.maximum(vector, self._usual)
        labels = np.arange(len(self.clusters))
        shown = np.broadcast_to(vector, raised.shape)
        scores = self._scores(labels, shown, raised, [foreign] * len(labels), False)
        best = max(labels, key=lambda label: (scores[label].p_value, -scores[label].score))
        return best, raised[best]

    def _scores(
        self,
        labels: npt.NDArray[np.intp],
        shown: Floats,
        counts: Floats,
        foreign: Sequence[dict[str, int]],
        reasons: bool,
    ) -> list[Score]:
        """Scores in given clusters: of the columns ``shown`` by each row, and of its ``counts``."""
        width = len(self.columns)
        # What no benign load at all ever showed gets columns of its own behind those there are.
        extra = list(dict.fromkeys(name for counted in foreign for name in counted))
        novel = np.zeros((len(counts), width + len(extra)))
        presence = self._presence
        if extra:
            presence = np.append(presence, [novelty(name, False) for name in extra])
            for i, counted in enumerate(foreign):
                novel[i, width:] = [counted.get(name, 0) for name in extra]
        scores = np.empty(len(counts))
        for label, rows in by_label(labels):
            novel[rows, :width] = self.detector.novel(shown[rows], label)
            scores[rows] = self.clusters[label].strangeness(counts[rows])
        each = surprise(presence, novel)
        scores += total_surprise(presence, each)
        p_values = self.detector.p_value(scores, labels)
        why: dict[int, tuple[Reason, ...]] = {}
        if reasons:
            places = {name: width + k for k, name in enumerate(extra)}
            for label, rows in by_label(labels):
                cluster = self.clusters[label]
                outside = (counts[rows] < cluster.low) | (counts[rows] > cluster.high)
                outside &= cluster.seen
                for j in np.flatnonzero(outside.any(axis=1) | novel[rows].any(axis=1)):
                    i = rows[j]
                    new = {self.columns[k]: int(k) for k in np.flatnonzero(novel[i, :width])}
                    new |= {name: places[name] for name in foreign[i]}
                    found = [
                        Reason(name, int(novel[i, k]), 0, 0, cluster.loads, float(each[i, k]))
                        for name, k in new.items()
                    ]
                    found += self._unusual(cluster, counts[i], outside[j])
                    found.sort(key=lambda reason: -reason.weight)
                    why[i] = tuple(found[:5])
        told = zip(scores.tolist(), p_values.tolist(), labels.tolist(), strict=True)
        return [
            Score(score, p_value, self.clusters[label].name, why.get(i, ()))
            for i, (score, p_value, label) in enumerate(told)
        ]

    def _unusual(
        self, cluster: Cluster, counts: Floats, outside: npt.NDArray[np.bool_]
    ) -> Iterator[Reason]:
        """Of the five columns that deviate most, those outside the range of benign rows."""
        f = np.abs(cluster.deviations(counts[None])[0])
        positions = np.flatnonzero(cluster.seen)
        for place in np.argsort(f)[::-1][:5]:
            i = positions[place]
            if outside[i]:
                low, high = int(cluster.low[i]), int(cluster.high[i])
                name, value = self.columns[i], int(counts[i])
                yield Reason(name, value, low, high, cluster.loads, float(f[place]))


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
