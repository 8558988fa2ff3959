"""The training half of the detector, as a scikit-learn estimator.

Recipe, after the DynaHug paper (arXiv 2604.19438) and what a second look at its data shows:
clusters are found in the benign data by k-means on the context columns; in each, robust scaling,
whitening by the Ledoit-Wolf covariance, an RBF one-class SVM; p-values by cross-conformal
calibration over folds of loads, so that every benign load is held out once (Vovk, *Annals of
Mathematics and Artificial Intelligence* 74, 2015).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
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
    by_label,
    in_context,
    nearest,
    robust,
)

__all__ = ["ClusteredOneClassSVM"]

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

#: Standard deviation of a context's log count is taken to be at least this.
_CONTEXT_SCALE = 0.5
#: A flag of the context, such as the format, weighs as much as so many standard deviations.
_FLAG_WEIGHT = 3.0
#: A cluster with fewer groups in a fold is left out of it: its rows go to the next one.
_FOLD_LEAST = 5


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
            Raw counts.
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
        self._prepare(counts, typical)

        self.alarms_: dict[int, int] = {}
        tried: dict[int, tuple[Floats, Floats, list[Calibration]]] = {}
        for number in np.unique(self.clusters)[::-1]:
            centres = self._centres(counts[typical], int(number))
            if len(centres) in self.alarms_:
                continue
            held_out, worst = self._hold_out(counts, owner, fold, teaching, centres)
            calibrations = [self._calibration(held_out, worst == k) for k in range(len(centres))]
            alarms = sum(
                int((calibrations[label].p_value(held_out[own]) <= self.alpha).sum())
                for label, own in by_label(worst)
            )
            self.alarms_[len(centres)] = alarms
            tried[len(centres)] = held_out, centres, calibrations
        allowed = max(min(self.alarms_.values()), self.alpha * len(names))
        number = max(n for n, alarms in self.alarms_.items() if alarms <= allowed)
        self.held_out_, best, chosen = tried[number]
        self.labels_ = nearest(self._context(counts), best)
        self.detector_ = self._detector(
            counts[teaching],
            owner[teaching],
            self._quorum,
            best,
            chosen,
            np.sort(self.held_out_),
        )
        return self

    def score_samples(self, X: Any) -> Floats:
        """The opposite of the score: any real number, larger is more ordinary; shape (n,)."""
        check_is_fitted(self)
        return -self.detector_.score(self._counts(X))[0]

    def p_value(self, X: Any) -> Floats:
        """Share of benign rows like each that are as strange, in (0, 1]; shape (n_samples,)."""
        check_is_fitted(self)
        return self.detector_.p_value(*self.detector_.score(self._counts(X)))

    def predict(self, X: Any) -> npt.NDArray[np.intp]:
        """-1 for outliers, whose p-value is at most ``alpha``, else 1; shape (n_samples,)."""
        return np.where(self.p_value(X) <= self.alpha, -1, 1)

    def _counts(self, X: Any, least: int = 1) -> Floats:
        counts = np.asarray(check_array(X, dtype=np.float64, ensure_min_samples=least))
        if (counts < 0).any():
            raise ValueError("X holds negative counts")
        width = getattr(self, "n_features_in_", counts.shape[1])
        if least == 1 and counts.shape[1] != width:
            raise ValueError(f"X has {counts.shape[1]} features, but {width} were learned")
        return counts

    def _prepare(self, counts: Floats, typical: Mask) -> None:
        """What all numbers of clusters share."""
        width = counts.shape[1]
        self._contexts = np.arange(width) if self.contexts is None else np.asarray(self.contexts)
        logs = np.log1p(counts[typical][:, self._contexts])
        self._context_mean = logs.mean(axis=0)
        self._context_scale = np.maximum(logs.std(axis=0), _CONTEXT_SCALE)
        self._context_scale[np.isin(self._contexts, self.flags)] = 1 / _FLAG_WEIGHT
        self._variance = np.broadcast_to(np.asarray(self.variance, float), width)
        elsewhere, never = (np.broadcast_to(np.asarray(p, float), width) for p in self.presence)
        self._elsewhere, self._never = elsewhere, never
        self._flags = np.asarray(self.flags, np.intp)
        self._quorum = np.broadcast_to(np.asarray(self.quorum, np.intp), width)
        self._ordinary = np.zeros(width, bool) if self.ordinary is None else self.ordinary

    def _context(self, counts: Floats) -> Floats:
        return in_context(counts, self._contexts, self._context_mean, self._context_scale)

    def _centres(self, counts: Floats, number: int) -> Floats:
        context = self._context(counts)
        number = min(number, len(np.unique(context, axis=0)))
        means = KMeans(number, n_init=10, random_state=self.random_state).fit(context)
        centres = np.asarray(means.cluster_centers_, np.float64)
        while len(centres) > 1:
            sizes = np.bincount(nearest(context, centres), minlength=len(centres))
            if sizes.min() >= self.least:
                break
            centres = np.delete(centres, sizes.argmin(), axis=0)
        return centres

    def _hold_out(
        self, counts: Floats, owner: Indices, fold: Indices, teaching: Mask, centres: Floats
    ) -> tuple[Floats, Indices]:
        """Score of each group's strangest row, held out with its fold, and that row's cluster.

        What just enough groups showed is known in spite of one that is held out.
        """
        quorum = np.maximum(self._quorum - 1, 1)
        scores, labels = np.empty(len(counts)), np.empty(len(counts), np.intp)
        none = [Calibration(np.zeros(1))] * len(centres)
        for part in range(self.folds):
            train, test = teaching & (fold[owner] != part), fold[owner] == part
            if test.any():
                detector = self._detector(
                    counts[train], owner[train], quorum, centres, none, np.zeros(1)
                )
                scores[test], kept = detector.score(counts[test])
                labels[test] = np.array([int(cluster.name) for cluster in detector.clusters])[kept]
        held_out, worst = np.empty(len(fold)), np.empty(len(fold), np.intp)
        order = np.argsort(scores)  # of a group's rows the last one stands: the strangest
        held_out[owner[order]], worst[owner[order]] = scores[order], labels[order]
        return held_out, worst

    def _calibration(self, held_out: Floats, own: Mask) -> Calibration:
        """Scores of a cluster's held-out groups, or of all where it has too few."""
        return Calibration(
            np.sort(held_out[own] if own.sum() >= self.own_calibration else held_out)
        )

    def _detector(
        self,
        counts: Floats,
        owner: Indices,
        quorum: Indices,
        centres: Floats,
        calibrations: Sequence[Calibration],
        pool: Floats,
    ) -> Detector:
        """A detector of these rows; without the clusters that have hardly any of them."""
        rng = np.random.default_rng(self.random_state)
        labels = nearest(self._context(counts), centres)
        fitted = []
        for label, centre in enumerate(centres):
            rows, owners = counts[labels == label], owner[labels == label]
            if len(centres) == 1 or np.unique(owners).size >= _FOLD_LEAST:
                seen = _groups(rows, owners) >= quorum
                cluster = self._fit_one(rows, owners, seen, centre, str(label), rng)
                fitted.append(replace(cluster, calibration=calibrations[label]))
        kinds = [counts[:, flag] > 0 for flag in self._flags]
        shown = [(_groups(counts[k], owner[k]) >= quorum) | self._ordinary for k in kinds]
        return Detector(
            self._contexts,
            self._context_mean,
            self._context_scale,
            tuple(fitted),
            self._flags,
            np.array(shown, bool).reshape(len(kinds), counts.shape[1]),
            Calibration(pool),
            np.where((counts > 0).any(axis=0), self._elsewhere, self._never),
        )

    def _fit_one(
        self,
        counts: Floats,
        owner: Indices,
        seen: Mask,
        centre: Floats,
        name: str,
        rng: np.random.Generator,
    ) -> Cluster:
        low, high = counts.min(axis=0), counts.max(axis=0)
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
            name=name,
            centre=centre,
            seen=seen,
            low=low,
            high=high,
            median=median,
            scale=scale,
            mean=mean,
            whitening=whitening,
            vectors=np.asarray(svm.support_vectors_, np.float64),
            weights=np.asarray(svm.dual_coef_[0], np.float64),
            rho=float(-svm.intercept_[0]),
            gamma=gamma,
            loads=int(np.unique(owner).size),
            rows=len(counts),
            calibration=Calibration(np.zeros(1)),
        )


def _groups(counts: Floats, owner: Indices) -> Indices:
    """How many groups show each feature; shapes (n, features), (n,) -> (features,)."""
    _, place = np.unique(owner, return_inverse=True)
    rows, features = np.nonzero(counts)
    pairs = np.unique(place[rows] * counts.shape[1] + features)
    return np.bincount(pairs % counts.shape[1], minlength=counts.shape[1])
