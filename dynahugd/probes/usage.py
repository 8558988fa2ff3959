"""What the kernel side takes: how full its tables are, its memory, the time its programs run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynahugd.probes import kernel, layout
from dynahugd.probes.maps import Maps
from dynahugd.probes.ring import Ring

__all__ = ["TABLES", "Meter", "Usage"]

#: The hash maps whose elements are counted, by what the configuration calls them: the map, and the
#: bytes of a key and of a value.
_HASHES = {
    "tasks": ("tasks", 4, layout.TASK.itemsize),
    "files": ("files", layout.FILE_KEY.itemsize, 8),
    "globals": ("known_globals", layout.GLOBAL_KEY.itemsize, 4),
}
#: The tables that can be full.
TABLES = ("loads", *_HASHES)

_STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True, slots=True)
class Usage:
    """What is taken now.

    Attributes
    ----------
    tables : entries in use and at most, by table; empty where the kernel does not tell (any more).
    waiting, ring, read : bytes of records that wait to be read, at most, and that were read so far.
    memory : bytes of all maps and programs, in the kernel.
    programs : seconds and runs of each program by its name; empty unless the kernel counts them
        now (``kernel.bpf_stats_enabled``).
    """

    tables: dict[str, tuple[int, int]]
    waiting: int
    ring: int
    read: int
    memory: int
    programs: dict[str, tuple[float, int]]


def _memory(fds: Iterable[int]) -> int:
    """Bytes that the kernel says it has charged for maps and programs."""
    total = 0
    for fd in fds:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        found = re.search(r"^memlock:\s*(\d+)", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total


class Meter:
    """Measures maps, ring and programs from another thread than the one that uses them."""

    def __init__(self, maps: Maps, ring: Ring, programs: dict[str, int]) -> None:
        sizes = maps.sizes
        self._most = {
            "loads": sizes.loads,
            "tasks": sizes.tasks,
            "files": sizes.files,
            "globals": sizes.globals,
        }
        self._loads = maps.loads
        self._fds = {name: maps.fds[where] for name, (where, _, _) in _HASHES.items()}
        self._ring = ring
        self._programs = programs
        # All of it is allocated at the start.
        self._memory = _memory([*maps.fds.values(), *programs.values()])

    def read(self) -> Usage:
        """What is taken now: some 0.1 ms, and 0.1 us for each element."""
        tables = {"loads": int(np.count_nonzero(self._loads["state"] != layout.State.FREE))}
        programs = {}
        with suppress(OSError):  # as when the daemon has just closed them
            for name, (_, key_size, value_size) in _HASHES.items():
                tables[name] = kernel.count_elements(
                    self._fds[name], key_size, value_size, self._most[name]
                )
            if _STATISTICS.read_text().strip() == "1":
                for name, fd in self._programs.items():
                    spent, runs = kernel.program_statistics(fd)
                    programs[name] = (spent / 1e9, runs)
        waiting, read = self._ring.positions()
        return Usage(
            {name: (used, self._most[name]) for name, used in tables.items()},
            waiting,
            self._ring.size,
            read,
            self._memory,
            programs,
        )
