"""The training half of the detector, as a scikit-learn estimator.

Recipe, after the DynaHug paper (arXiv 2604.19438) and what a second look at its data shows:
clusters are found in the benign data by k-means on the context columns; in each, robust scaling,
whitening by the Ledoit-Wolf covariance, an RBF one-class SVM; p-values by cross-conformal
calibration over folds of loads, so that every benign load is held out once (Vovk, *Annals of
Mathematics and Artificial Intelligence* 74, 2015).

However many rows there are, all of them are tallied and all held-out groups are scored; k-means,
scaling and covariance see samples of ``max_sample`` rows, the one-class SVMs of ``max_rows``. The
memory on top of the rows is bounded by these two, but for some numbers for each row.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.svm import OneClassSVM
from sklearn.utils.validation import check_array, check_is_fitted

from dynahugd.baseline.detector import (
    DECISIVE,
    ELSEWHERE,
    Calibration,
    Cluster,
    Detector,
    Floats,
    in_context,
    nearest,
    robust,
)
from dynahugd.baseline.groups import Counts, Groups, Indices, Mask, Tally, chunks

__all__ = ["ClusteredOneClassSVM"]

#: Standard deviation of a context's log count is taken to be at least this.
_CONTEXT_SCALE = 0.5
#: A flag of the context, such as the format, weighs as much as so many standard deviations.
_FLAG_WEIGHT = 3.0
#: A cluster with fewer groups in a fold is left out of it: its rows go to the next one.
_FOLD_LEAST = 5


@dataclass(frozen=True, slots=True)
class _Partition:
    """Rows by nearest centre: labels; of each cluster, the rows that teach and their tally."""

    centres: Floats
    labels: Indices
    members: tuple[Indices, ...]
    tallies: tuple[Tally, ...]


class ClusteredOneClassSVM(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """One-class SVMs, one per cluster of benign behaviour, with conformal p-values.

    Parameters
    ----------
    clusters : int or ints
        Number of clusters at most. Of several, the largest, which tells kinds of loads best
        apart, whose false alarms among held-out groups are no more than ``alpha`` says; or,
        where there is none, as few as with any other.
    least : int
        A cluster has at least so many groups; a smaller one is given up.
    nu : float
        Share of benign rows that may lie outside (``OneClassSVM``).
    gamma : float
        Kernel width in units of 1 / median squared norm of the whitened rows.
    variance : float or array of shape (n_features,)
        Variance of a feature's robust coordinate on top of what the rows show.
    presence : two floats or two arrays of shape (n_features,)
        What a feature adds to the score that the row's cluster never shows: when rows of other
        clusters do, and when none does.
    contexts : ints or None
        Features in which clusters are found; None: all.
    flags : ints
        Those of the contexts that are 0 or 1 and tell kinds of rows apart.
    quorum : int or array of shape (n_features,)
        So many groups have to show a feature before a cluster, and a kind, is said to know it:
        what one group did alone, a stray attack may have done.
    ordinary : bool array of shape (n_features,) or None
        Features that a kind need not have shown itself when its cluster did; None: none.
    alpha : float
        A row with at most this p-value is an outlier.
    folds : int
        Of the calibration.
    own_calibration : int
        A cluster with fewer held-out groups is calibrated by those of all clusters.
    max_rows : int
        At most so many rows enter a one-class SVM; more are sampled.
    max_sample : int
        At most so many rows, of the typical ones and of each cluster, enter k-means, scaling and
        covariance; more are sampled.
    random_state : int
        Of everything random.

    Attributes
    ----------
    detector_ : Detector
        Numpy alone; what a baseline stores.
    labels_ : array of shape (n_samples,)
        Cluster of each row.
    held_out_ : array of shape (n_groups,)
        Score of each group when it was held out, in the order of the sorted group names.
    alarms_ : dict
        Held-out groups whose p-value is at most ``alpha``, by number of clusters tried.
    n_features_in_ : int
        Features seen by :meth:`fit`.
    """

    def __init__(
        self,
        *,
        clusters: int | Sequence[int] = (1, 2, 4, 8, 12, 16),
        least: int = 40,
        nu: float = 0.01,
        gamma: float = 0.5,
        variance: float | Floats = 0.01,
        presence: tuple[float | Floats, float | Floats] = (ELSEWHERE, DECISIVE),
        contexts: Sequence[int] | Indices | None = None,
        flags: Sequence[int] = (),
        quorum: int | Indices = 1,
        ordinary: Mask | None = None,
        alpha: float = 0.001,
        folds: int = 5,
        own_calibration: int = 200,
        max_rows: int = 4000,
        max_sample: int = 50_000,
        random_state: int = 0,
    ) -> None:
        self.clusters = clusters
        self.least = least
        self.nu = nu
        self.gamma = gamma
        self.variance = variance
        self.presence = presence
        self.contexts = contexts
        self.flags = flags
        self.quorum = quorum
        self.ordinary = ordinary
        self.alpha = alpha
        self.folds = folds
        self.own_calibration = own_calibration
        self.max_rows = max_rows
        self.max_sample = max_sample
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        groups: Any = None,
        teaching: Mask | None = None,
        typical: Mask | None = None,
    ) -> Self:
        """Learn from benign rows.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Raw counts; in single precision they are not copied.
        groups : array of shape (n_samples,), optional
            Rows of one group (load) are held out together, and its strangest row stands for it.
        teaching : bool array of shape (n_samples,), optional
            Rows that are learned from; the others are held-out rows only.
        typical : bool array of shape (n_samples,), optional
            One row of each group, for the clusters.

        Raises
        ------
        ValueError : on counts that are negative or not finite, or too few rows.
        """
        counts = self._counts(X, least=2)
        self.n_features_in_ = counts.shape[1]
        rows = np.arange(len(counts))
        names, first, owner = np.unique(
            rows if groups is None else groups, return_index=True, return_inverse=True
        )
        teaching = np.ones(len(rows), bool) if teaching is None else teaching
        typical = np.isin(rows, first) if typical is None else typical
        fold = np.random.default_rng(self.random_state).integers(self.folds, size=len(names))
        grouped = Groups(counts, owner, fold, self.folds)
        rng = np.random.default_rng(self.random_state)
        sample = np.asarray(counts[self._sample(np.flatnonzero(typical), rng)], np.float64)
        self._prepare(sample)
        taught = np.flatnonzero(teaching)
        kinds = [grouped.tally(taught[counts[taught, flag] > 0]) for flag in self._flags]

        self.alarms_: dict[int, int] = {}
        tried: dict[int, tuple[_Partition, Floats, list[Calibration]]] = {}
        for number in np.unique(self.clusters)[::-1]:
            centres = self._centres(sample, int(number), self.least * len(sample) / typical.sum())
            if len(centres) in self.alarms_:
                continue
            partition = self._partition(grouped, taught, centres)
            held_out, worst = self._hold_out(grouped, partition, kinds)
            own = [np.sort(held_out[worst == label]) for label in range(len(centres))]
            calibrations = self._calibrations(own, np.sort(held_out))
            self.alarms_[len(centres)] = sum(
                int((calibration.p_value(scores) <= self.alpha).sum())
                for calibration, scores in zip(calibrations, own, strict=True)
            )
            tried[len(centres)] = partition, held_out, calibrations
        allowed = max(min(self.alarms_.values()), self.alpha * len(names))
        number = max(n for n, alarms in self.alarms_.items() if alarms <= allowed)
        best, self.held_out_, chosen = tried[number]
        self.labels_ = best.labels
        every = np.ones(self.folds, bool)
        self.detector_ = self._detector(
            grouped, best, kinds, every, self._quorum, chosen, np.sort(self.held_out_)
        )
        return self

    def score_samples(self, X: Any) -> Floats:
        """The opposite of the score: any real number, larger is more ordinary; shape (n,)."""
        return -self._score(X)[0]

    def p_value(self, X: Any) -> Floats:
        """Share of benign rows like each that are as strange, in (0, 1]; shape (n_samples,)."""
        scores, labels = self._score(X)
        return self.detector_.p_value(scores, labels)

    def predict(self, X: Any) -> npt.NDArray[np.intp]:
        """-1 for outliers, whose p-value is at most ``alpha``, else 1; shape (n_samples,)."""
        return np.where(self.p_value(X) <= self.alpha, -1, 1)

    def _counts(self, X: Any, least: int = 1) -> Counts:
        kinds = [np.float64, np.float32]
        counts: Counts = check_array(X, dtype=kinds, ensure_min_samples=least)
        if counts.min() < 0:
            raise ValueError("X holds negative counts")
        width = getattr(self, "n_features_in_", counts.shape[1])
        if least == 1 and counts.shape[1] != width:
            raise ValueError(f"X has {counts.shape[1]} features, but {width} were learned")
        return counts

    def _score(self, X: Any) -> tuple[Floats, Indices]:
        check_is_fitted(self)
        parts = [self.detector_.score(counts) for _, counts in chunks(self._counts(X))]
        scores, labels = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(labels)

    def _prepare(self, typical: Floats) -> None:
        """What all numbers of clusters share."""
        width = typical.shape[1]
        self._contexts = np.arange(width) if self.contexts is None else np.asarray(self.contexts)
        logs = np.log1p(typical[:, self._contexts])
        self._context_mean = logs.mean(axis=0)
        self._context_scale = np.maximum(logs.std(axis=0), _CONTEXT_SCALE)
        self._context_scale[np.isin(self._contexts, self.flags)] = 1 / _FLAG_WEIGHT
        self._variance = np.broadcast_to(np.asarray(self.variance, float), width)
        elsewhere, never = (np.broadcast_to(np.asarray(p, float), width) for p in self.presence)
        self._elsewhere, self._never = elsewhere, never
        self._flags = np.asarray(self.flags, np.intp)
        self._quorum = np.broadcast_to(np.asarray(self.quorum, np.intp), width)
        self._ordinary = np.zeros(width, bool) if self.ordinary is None else self.ordinary

    def _sample(self, rows: Indices, rng: np.random.Generator) -> Indices:
        if len(rows) <= self.max_sample:
            return rows
        return np.sort(rng.choice(rows, self.max_sample, replace=False, shuffle=False))

    def _context(self, counts: Floats) -> Floats:
        return in_context(counts, self._contexts, self._context_mean, self._context_scale)

    def _centres(self, counts: Floats, number: int, least: float) -> Floats:
        """So many centres, or fewer: each is the nearest of at least so many of the rows."""
        context = self._context(counts)
        number = min(number, len(np.unique(context, axis=0)))
        means = KMeans(number, n_init=10, random_state=self.random_state).fit(context)
        centres = np.asarray(means.cluster_centers_, np.float64)
        while len(centres) > 1:
            sizes = np.bincount(nearest(context, centres), minlength=len(centres))
            if sizes.min() >= least:
                break
            centres = np.delete(centres, sizes.argmin(), axis=0)
        return centres

    def _partition(self, rows: Groups, taught: Indices, centres: Floats) -> _Partition:
        labels = np.empty(len(rows.counts), np.intp)
        for part, counts in chunks(rows.counts):
            labels[part] = nearest(self._context(counts), centres)
        members = tuple(taught[labels[taught] == label] for label in range(len(centres)))
        return _Partition(centres, labels, members, tuple(map(rows.tally, members)))

    def _hold_out(
        self, rows: Groups, partition: _Partition, kinds: Sequence[Tally]
    ) -> tuple[Floats, Indices]:
        """Score of each group's strangest row, held out with its fold, and that row's cluster.

        What just enough groups showed is known in spite of one that is held out.
        """
        quorum = np.maximum(self._quorum - 1, 1)
        scores, labels = np.empty(len(rows.counts)), np.empty(len(rows.counts), np.intp)
        none = [Calibration(np.zeros(1))] * len(partition.centres)
        for fold in range(self.folds):
            test = np.flatnonzero(rows.fold[rows.owner] == fold)
            if not test.size:
                continue
            kept = np.arange(self.folds) != fold
            detector = self._detector(rows, partition, kinds, kept, quorum, none, np.zeros(1))
            names = np.array([int(cluster.name) for cluster in detector.clusters])
            for part, counts in chunks(rows.counts, test):
                scores[part], found = detector.score(counts)
                labels[part] = names[found]
        held_out, worst = np.empty(len(rows.fold)), np.empty(len(rows.fold), np.intp)
        order = np.argsort(scores)  # of a group's rows the last one stands: the strangest
        held_out[rows.owner[order]], worst[rows.owner[order]] = scores[order], labels[order]
        return held_out, worst

    def _calibrations(self, own: Sequence[Floats], pool: Floats) -> list[Calibration]:
        """Scores of each cluster's held-out groups, or of all where it has too few; sorted."""
        return [Calibration(s if s.size >= self.own_calibration else pool) for s in own]

    def _detector(
        self,
        rows: Groups,
        partition: _Partition,
        kinds: Sequence[Tally],
        kept: Mask,
        quorum: Indices,
        calibrations: Sequence[Calibration],
        pool: Floats,
    ) -> Detector:
        """A detector of the folds that are kept; without clusters that hardly have rows of them."""
        rng = np.random.default_rng(self.random_state)
        fitted = []
        parts = zip(partition.members, partition.tallies, strict=True)
        for label, (members, tally) in enumerate(parts):
            if len(partition.centres) > 1 and tally.groups[kept].sum() < _FOLD_LEAST:
                continue
            own = self._sample(members[kept[rows.fold_of(members)]], rng)
            cluster = self._fit_one(
                np.asarray(rows.counts[own], np.float64), tally, kept, quorum, rng
            )
            centre, calibration = partition.centres[label], calibrations[label]
            fitted.append(replace(cluster, name=str(label), centre=centre, calibration=calibration))
        shown = [(kind.showing[kept].sum(axis=0) >= quorum) | self._ordinary for kind in kinds]
        anywhere = sum(tally.showing[kept].sum(axis=0) for tally in partition.tallies)
        return Detector(
            self._contexts,
            self._context_mean,
            self._context_scale,
            tuple(fitted),
            self._flags,
            np.array(shown, bool).reshape(len(kinds), rows.counts.shape[1]),
            Calibration(pool),
            np.where(anywhere > 0, self._elsewhere, self._never),
        )

    def _fit_one(
        self,
        counts: Floats,
        tally: Tally,
        kept: Mask,
        quorum: Indices,
        rng: np.random.Generator,
    ) -> Cluster:
        """A cluster, yet without a name, a centre and a calibration."""
        seen = tally.showing[kept].sum(axis=0) >= quorum
        rows = counts[:, seen]
        median = np.median(rows, axis=0)
        scale = np.maximum(1.4826 * np.median(np.abs(rows - median), axis=0), 1.0)
        f = robust(rows, median, scale)
        mean = f.mean(axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a cluster of identical rows has no covariance
            covariance = LedoitWolf(assume_centered=True).fit(f - mean).covariance_
        values, vectors = np.linalg.eigh(covariance + np.diag(self._variance[seen]))
        whitening = vectors / np.sqrt(values)
        u = (f - mean) @ whitening
        if len(u) > self.max_rows:
            u = u[rng.choice(len(u), self.max_rows, replace=False)]
        gamma = self.gamma / max(float(np.median((u**2).sum(axis=1))), 1.0)
        svm = OneClassSVM(kernel="rbf", gamma=gamma, nu=self.nu).fit(u)
        return Cluster(
            name="",
            centre=np.zeros(0),
            seen=seen,
            low=tally.low[kept].min(axis=0),
            high=tally.high[kept].max(axis=0),
            median=median,
            scale=scale,
            mean=mean,
            whitening=whitening,
            vectors=np.asarray(svm.support_vectors_, np.float64),
            weights=np.asarray(svm.dual_coef_[0], np.float64),
            rho=float(-svm.intercept_[0]),
            gamma=gamma,
            loads=int(tally.groups[kept].sum()),
            rows=int(tally.rows[kept].sum()),
            calibration=Calibration(np.zeros(1)),
        )
