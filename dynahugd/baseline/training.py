"""Training: from rows of benign loads to a baseline. scikit-learn is needed here, nowhere else.

Recipe, after the DynaHug paper (arXiv 2604.19438) and what a second look at its data shows:
clusters are found in the benign data by k-means on the context columns; in each, robust scaling,
whitening by the Ledoit-Wolf covariance, an RBF one-class SVM; p-values by split conformal over
folds of loads, so that every benign load is held out once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dynahugd.baseline.model import (
    Baseline,
    Calibration,
    Cluster,
    novelty,
    robust,
    surprise,
    total_surprise,
)
from dynahugd.errors import DynahugError
from dynahugd.features import Row, is_context, is_mild

__all__ = ["COMMON", "Recipe", "common_globals", "train"]

Floats = npt.NDArray[np.float64]

#: A cluster with fewer loads is calibrated by all loads together.
_OWN_CALIBRATION = 200
_FORMAT_WEIGHT = 3.0
#: A global of fewer loads is one of a user's own module, not of a library.
COMMON = 5
#: Variance of a column's robust coordinate that comes on top of what the recording shows, since its
#: hosts are not all hosts: of ordinary work, which is a matter of machine, moment and libraries (a
#: contended lock, a slow disk, another allocator), an e-fold more or less says nothing.
_VARIANCE, _VARIANCE_MILD = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the training.

    Attributes
    ----------
    clusters : number of clusters at most.
    least : a cluster has at least so many loads; a smaller one is given up.
    nu : share of benign rows that may lie outside (``OneClassSVM``).
    gamma : kernel width in units of 1 / median squared norm of the whitened rows.
    folds : of the cross-conformal calibration.
    rows_per_load : of a load's rows, which may be thousands, so many teach.
    rows : at most so many rows enter a one-class SVM; more are sampled.
    seed : of everything random.
    """

    clusters: int = 12
    least: int = 40
    nu: float = 0.01
    gamma: float = 0.2
    folds: int = 5
    rows_per_load: int = 12
    rows: int = 4000
    seed: int = 0


def common_globals(
    loads: Iterable[set[tuple[str, str]]], least: int = COMMON
) -> frozenset[tuple[str, str]]:
    """Globals that at least so many loads resolved."""
    counted = Counter(pair for pairs in loads for pair in pairs)
    return frozenset(pair for pair, count in counted.items() if count >= least)


def train(
    loads: Sequence[Sequence[Row]],
    known_globals: frozenset[tuple[str, str]],
    metadata: Mapping[str, Any],
    recipe: Recipe | None = None,
) -> Baseline:
    """Train a baseline.

    Parameters
    ----------
    loads : the rows of each benign load.

    Raises
    ------
    DynahugError : with fewer than 50 loads.
    """
    recipe = recipe or Recipe()
    if len(loads) < 50:
        raise DynahugError(f"{len(loads)} loads are too few for a baseline: record at least 50")
    columns = tuple(sorted({name for rows in loads for row in rows for name in row.counts}))
    matrix, owner = _matrix(loads, columns)
    teaching, final = _teaching(loads, recipe.rows_per_load)

    contexts = np.array([i for i, name in enumerate(columns) if is_context(name)], np.intp)
    context = np.log1p(matrix[:, contexts])
    mean = context[final].mean(axis=0)
    scale = np.maximum(context[final].std(axis=0), 0.5)
    for position, column in enumerate(contexts):
        if columns[column].startswith("format."):
            scale[position] = 1 / _FORMAT_WEIGHT
    context = (context - mean) / scale
    centres = _centres(context[final], recipe)
    labels = _nearest(context, centres)

    rng = np.random.default_rng(recipe.seed)
    fold = rng.integers(recipe.folds, size=len(loads))
    held_out = np.full(owner.size, -np.inf)
    variance = np.array([_VARIANCE_MILD if is_mild(name) else _VARIANCE for name in columns])
    strangest = np.array([novelty(name, False) for name in columns])
    strange = np.array([novelty(name, True) for name in columns])
    for part in range(recipe.folds):
        training, test = teaching & (fold[owner] != part), fold[owner] == part
        elsewhere = (matrix[training] > 0).any(axis=0)
        weights = np.where(elsewhere, strange, strangest)
        for label in range(len(centres)):
            inside = training & (labels == label)
            rows = test & (labels == label)
            if not rows.any() or np.unique(owner[inside]).size < 5:
                continue
            cluster = _fit(matrix[inside], owner[inside], centres[label], variance, "", recipe, rng)
            each = surprise(weights, matrix[rows] * ~cluster.seen)
            held_out[rows] = cluster.strangeness(matrix[rows]) + total_surprise(weights, each)

    scores = np.full(len(loads), -np.inf)
    np.maximum.at(scores, owner, held_out)
    worst = np.full(len(loads), -1)
    for position in np.argsort(held_out):  # the last one stands: the worst row's cluster
        worst[owner[position]] = labels[position]
    usable = np.isfinite(scores)
    if not usable.any():
        raise DynahugError("no two loads are alike: record more of them")
    clusters = []
    for label in range(len(centres)):
        inside = teaching & (labels == label)
        own = usable & (worst == label)
        names = Counter(
            columns[column].removeprefix("format.")
            for column in contexts
            if columns[column].startswith("format.")
            for _ in range(int((matrix[inside, column] > 0).sum()))
        )
        cluster = _fit(
            matrix[inside],
            owner[inside],
            centres[label],
            variance,
            f"{names.most_common(1)[0][0]}-{label}",
            recipe,
            rng,
            np.sort(scores[own] if own.sum() >= _OWN_CALIBRATION else scores[usable]),
        )
        clusters.append(cluster)
    pool = Calibration(np.sort(scores[usable]))
    return Baseline(
        columns, contexts, mean, scale, tuple(clusters), pool, known_globals, dict(metadata)
    )


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
    loads: Sequence[Sequence[Row]], most: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows teach, evenly spaced over each load, and which is the last of a whole load.

    A load has a row for each look at it: without this a slow one would outweigh a thousand others.
    """
    teaching, final = [], []
    for rows in loads:
        chosen = np.zeros(len(rows), bool)
        chosen[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] = True
        last = np.zeros(len(rows), bool)
        last[max(i for i, row in enumerate(rows) if row.window == "whole")] = True
        teaching.append(chosen | last)
        final.append(last)
    return np.concatenate(teaching), np.concatenate(final)


def _nearest(context: Floats, centres: Floats) -> npt.NDArray[np.intp]:
    distance = ((context[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(distance.argmin(axis=1))


def _centres(context: Floats, recipe: Recipe) -> Floats:
    from sklearn.cluster import KMeans

    count = min(recipe.clusters, len(np.unique(context, axis=0)))
    means = KMeans(count, n_init=10, random_state=recipe.seed).fit(context)
    centres = np.asarray(means.cluster_centers_, np.float64)
    while len(centres) > 1:
        sizes = np.bincount(_nearest(context, centres), minlength=len(centres))
        if sizes.min() >= recipe.least:
            break
        centres = np.delete(centres, sizes.argmin(), axis=0)
    return centres


def _fit(
    matrix: Floats,
    owner: npt.NDArray[np.intp],
    centre: Floats,
    variance: Floats,
    name: str,
    recipe: Recipe,
    rng: np.random.Generator,
    calibration: Floats | None = None,
) -> Cluster:
    from sklearn.covariance import LedoitWolf
    from sklearn.svm import OneClassSVM

    low, high = matrix.min(axis=0), matrix.max(axis=0)
    seen = high > 0
    rows = matrix[:, seen]
    median = np.median(rows, axis=0)
    scale = np.maximum(1.4826 * np.median(np.abs(rows - median), axis=0), 1.0)
    f = robust(rows, median, scale)
    mean = f.mean(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cluster of identical rows has no covariance
        covariance = LedoitWolf(assume_centered=True).fit(f - mean).covariance_
    values, vectors = np.linalg.eigh(covariance + np.diag(variance[seen]))
    whitening = vectors / np.sqrt(values)
    u = (f - mean) @ whitening
    if len(u) > recipe.rows:
        u = u[rng.choice(len(u), recipe.rows, replace=False)]
    norm = float(np.median((u**2).sum(axis=1)))
    gamma = recipe.gamma / max(norm, 1.0)
    svm = OneClassSVM(kernel="rbf", gamma=gamma, nu=recipe.nu).fit(u)
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
        rows=len(matrix),
        calibration=Calibration(np.zeros(1) if calibration is None else calibration),
    )
