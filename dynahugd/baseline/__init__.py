"""Baselines: what benign loads look like, and how unlike them a row is.

``ClusteredOneClassSVM`` trains them and needs scikit-learn, which the daemon does without: it is
imported when it is asked for.
"""

from typing import Any

from dynahugd.baseline.detector import Cluster, Detector
from dynahugd.baseline.files import embedded, read, write
from dynahugd.baseline.model import Baseline, Reason, Score

__all__ = [
    "Baseline",
    "Cluster",
    "ClusteredOneClassSVM",
    "Detector",
    "Reason",
    "Score",
    "embedded",
    "read",
    "write",
]


def __getattr__(name: str) -> Any:
    if name == "ClusteredOneClassSVM":
        from dynahugd.baseline.estimator import ClusteredOneClassSVM

        return ClusteredOneClassSVM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
