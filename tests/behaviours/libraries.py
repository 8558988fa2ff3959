"""Libraries that model files are made with, imported when a file is."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["library"]


def library(name: str) -> Any:
    """A module by name: late, since most behaviours need none and torch takes seconds."""
    return importlib.import_module(name)
