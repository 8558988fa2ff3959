"""Loads: one object per open load, built from batches of records."""

from dynahugd.loads.load import Act, Load
from dynahugd.loads.tracker import Tracker, Update

__all__ = ["Act", "Load", "Tracker", "Update"]
