"""Baselines: what benign loads look like, and how unlike them a row is."""

from dynahugd.baseline.files import embedded, read, write
from dynahugd.baseline.model import Baseline, Cluster, Reason, Score

__all__ = ["Baseline", "Cluster", "Reason", "Score", "embedded", "read", "write"]
