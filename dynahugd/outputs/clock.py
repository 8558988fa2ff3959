"""Kernel times as wall-clock times."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["WallClock"]


class WallClock:
    """Maps CLOCK_MONOTONIC in ns, which the kernel stamps, to UTC.

    The offset is taken anew at each call, so that a step of the system's clock is followed.
    """

    def __init__(self, offset: int | None = None) -> None:
        self._offset = offset

    def at(self, monotonic: int) -> datetime:
        """The wall-clock time of a kernel time."""
        offset = self._offset
        if offset is None:
            offset = time.time_ns() - time.monotonic_ns()
        return datetime.fromtimestamp((monotonic + offset) / 1e9, UTC)

    def iso(self, monotonic: int) -> str:
        """The same as ISO 8601 text with microseconds, such as 2026-05-04T09:30:00.000123Z."""
        return self.at(monotonic).isoformat(timespec="microseconds").replace("+00:00", "Z")
