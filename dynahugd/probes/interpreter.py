"""What is known of one interpreter's file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum

from dynahugd.probes.attach import detach
from dynahugd.probes.cpython import Runtime, SitesNotFound, find_sites

__all__ = ["Coverage", "Interpreter", "look_into", "stamp_of"]

_SETTLED_NS = 1_000_000_000


class Coverage(StrEnum):
    """What is known about an interpreter's file: the label ``state`` of the metric."""

    ATTACHED = "attached"
    NOT_COVERED = "not_covered"
    RELEASED = "released"


@dataclass(slots=True)
class Interpreter:
    """One file: an executable, a libpython or a shared ``_pickle``.

    Attributes
    ----------
    path : as the process that first showed it calls it. Hostile text.
    coverage, reason : whether it is attached, and if not, why, as a sentence.
    found : its probe sites, or why there are none.
    stamp : time of change and size when it was looked at; None if it had just changed.
    """

    path: str
    coverage: Coverage
    found: Runtime | str
    reason: str = ""
    fds: list[int] = field(default_factory=list)
    reach: str = ""
    stamp: tuple[int, int] | None = None

    @property
    def version(self) -> tuple[int, int] | None:
        """(major, minor) of CPython, where there are sites."""
        return None if isinstance(self.found, str) else self.found.version

    @property
    def unpickler(self) -> bool:
        """Whether its C unpickler is in this file."""
        return not isinstance(self.found, str) and self.found.load is not None

    def detach(self) -> None:
        """Close its attachments."""
        detach(self.fds)
        self.fds.clear()


def stamp_of(status: os.stat_result) -> tuple[int, int] | None:
    """Time of change in ns and size, by which a file that has changed is known.

    No process can set the time. None if it is not yet one second ago: another change in the same
    tick of the clock would not show.
    """
    settled = abs(time.time_ns() - status.st_ctime_ns) > _SETTLED_NS
    return (status.st_ctime_ns, status.st_size) if settled else None


def look_into(fd: int, path: str) -> Runtime | str:
    """The probe sites of a file, or why there are none. Takes some 20 ms for an interpreter."""
    try:
        return find_sites(fd, os.path.basename(path))
    except SitesNotFound as error:
        return str(error)
