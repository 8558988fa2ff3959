"""How much is measured."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

__all__ = ["Level"]

_T = TypeVar("_T")


class Level(Enum):
    """``FULL`` is for the document; ``QUICK`` for a look; ``TINY`` shows that everything runs."""

    FULL = "full"
    QUICK = "quick"
    TINY = "tiny"

    def pick(self, full: _T, quick: _T, tiny: _T) -> _T:
        """One of three."""
        return {Level.FULL: full, Level.QUICK: quick, Level.TINY: tiny}[self]
