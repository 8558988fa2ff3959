"""scikit-learn's estimators: in a fresh process the load itself imports scikit-learn and scipy."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict

from benchmarks.baseline.programs import pickles
from benchmarks.baseline.programs.crowds import busy, forked
from benchmarks.baseline.programs.kind import Kind, Make, word
from benchmarks.baseline.programs.users import beside, module

__all__ = ["KINDS"]


def _new(name: str, **options: Any) -> Callable[[Random], Any]:
    """A maker of an estimator, fitted to numbers."""
    place, _, cls = name.rpartition(".")

    def make(rng: Random) -> Any:
        import numpy

        estimator = getattr(importlib.import_module("sklearn." + place), cls)(**options)
        random = numpy.random.default_rng(rng.randrange(1 << 30))
        points = random.random((rng.randint(40, 120), 4))
        return estimator.fit(points, (points[:, 0] > 0.5).astype(int))

    return make


def _text(rng: Random) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline

    texts = [" ".join(word(rng, 2) for _ in range(20)) for _ in range(60)]
    return make_pipeline(TfidfVectorizer(), SGDClassifier()).fit(texts, [0, 1] * 30)


def _columns(rng: Random) -> Any:
    import numpy
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    parts = [("numbers", numbers, [0, 1]), ("kinds", OneHotEncoder(), [2])]
    steps = [("columns", ColumnTransformer(parts)), ("classify", LogisticRegression())]
    table = numpy.array([[rng.random(), rng.random(), rng.randrange(3)] for _ in range(60)])
    return Pipeline(steps).fit(table, [0, 1] * 30)


def _search(rng: Random) -> Any:
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    points = [[rng.random(), rng.random()] for _ in range(40)]
    search = GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2)
    return search.fit(points, [0, 1] * 20)


def _scipy(rng: Random) -> Any:
    scipy: Any = importlib.import_module("scipy")  # its parts import themselves
    steps = sorted({rng.random() for _ in range(12)})
    return {
        "matrix": scipy.sparse.random(30, 30, 0.1, "csr"),
        "curve": scipy.interpolate.CubicSpline(steps, steps),
        "prior": scipy.stats.norm(loc=rng.random()),
    }


def _dump(make: Callable[[Random], Any]) -> Make:
    def save(folder: Path, rng: Random) -> Path:
        value = make(rng)
        if rng.random() < 0.5:
            path = folder / (word(rng) + ".pkl")
            with open(path, "wb") as file:
                pickle.dump(value, file, rng.choice((3, 4, 5)))
        else:
            import joblib

            path = folder / (word(rng) + ".joblib")
            joblib.dump(value, path, compress=rng.choice((0, 0, 3)))
        return path

    return save


def _load(path: Path) -> None:
    if path.suffix == ".pkl":
        pickles.load(path)
    else:
        import joblib

        joblib.load(path)


_ESTIMATORS: Dict[str, Callable[[Random], Any]] = {
    "forest": _new("ensemble.RandomForestClassifier", n_estimators=10),
    "extra_trees": _new("ensemble.ExtraTreesRegressor", n_estimators=10),
    "boosting": _new("ensemble.GradientBoostingClassifier", n_estimators=10),
    "histogram_boosting": _new("ensemble.HistGradientBoostingClassifier", max_iter=5),
    "isolation_forest": _new("ensemble.IsolationForest", n_estimators=10),
    "logistic": _new("linear_model.LogisticRegression"),
    "lasso": _new("linear_model.Lasso"),
    "kmeans": _new("cluster.KMeans", n_clusters=3),
    "svc": _new("svm.SVC"),
    "neighbours": _new("neighbors.KNeighborsClassifier"),
    "pca": _new("decomposition.PCA"),
    "gaussian_process": _new("gaussian_process.GaussianProcessRegressor"),
    "naive_bayes": _new("naive_bayes.GaussianNB"),
    "perceptron": _new("neural_network.MLPClassifier", max_iter=3),
    "mixture": _new("mixture.GaussianMixture"),
    "polynomial": _new("preprocessing.PolynomialFeatures"),
    "text": _text,
    "columns": _columns,
    "search": _search,
    "scipy": _scipy,
}

KINDS = (
    *(Kind("sklearn_" + name, _dump(make), _load, 3, 22) for name, make in _ESTIMATORS.items()),
    Kind("sklearn_forked", _dump(_columns), forked(_load), 1, 24),
    Kind("sklearn_busy", _dump(_text), busy(_load, 4), 1, 6),
    Kind(
        "user_imports_sklearn",
        module("from sklearn.base import clone\nfrom sklearn.svm import SVC\n"),
        beside(pickles.load),
        5,
        20,
        1,
    ),
    Kind(
        "user_imports_scipy",
        module("import scipy.optimize\nimport scipy.signal\n"),
        beside(pickles.load),
        5,
        20,
        1,
    ),
)
