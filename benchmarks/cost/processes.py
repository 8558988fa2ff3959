"""What a process uses: CPU and memory."""

from __future__ import annotations

import re
import time
from pathlib import Path

__all__ = ["cpu_seconds", "mebibytes"]


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, ended ones too, to the nanosecond.

    The number of the clock is what clock_getcpuclockid(3) makes of a pid: ``MAKE_PROCESS_CPUCLOCK``
    of Linux's ``posix-timers.h`` with ``CPUCLOCK_SCHED``.
    """
    return time.clock_gettime((~pid << 3) | 2)


def mebibytes(pid: int, field: str) -> float:
    """Memory of a process.

    ``VmRSS`` is resident, ``VmHWM`` the most that has been; in ``Pss``, what is shared with other
    processes counts by its share.
    """
    for file in ("status", "smaps_rollup"):
        text = Path(f"/proc/{pid}/{file}").read_text()
        if found := re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE):
            return int(found[1]) / 1024
    raise RuntimeError(f"the kernel does not tell {field} of process {pid}")
