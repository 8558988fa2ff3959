"""``dynahugd_self_*``: what the daemon itself costs, in user space and in the kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric

from dynahugd.outputs.families import Description
from dynahugd.probes.usage import Usage

__all__ = ["METRICS", "families"]

_CPU = Description(
    "dynahugd_self_cpu_seconds",
    "counter",
    ("mode",),
    "CPU time of the daemon by mode: user, system. That of its programs in the kernel is not in "
    "it: whoever makes them run pays for it.",
)
_MEMORY = Description(
    "dynahugd_self_memory_bytes",
    "gauge",
    ("part",),
    "Memory by part: private = what only the daemon has; mapped = files, libraries and those "
    "tables of the kernel that it maps, as far as resident; kernel = all its tables and programs "
    "in the kernel, mapped or not. process_resident_memory_bytes is private and mapped.",
)
_ENTRIES = Description(
    "dynahugd_self_table_entries",
    "gauge",
    ("table",),
    "Entries in use of each table in the kernel.",
)
_MAX_ENTRIES = Description(
    "dynahugd_self_table_max_entries",
    "gauge",
    ("table",),
    "Entries that each table has room for: [tables] in the configuration.",
)
_RING = Description(
    "dynahugd_self_ring_bytes", "gauge", (), "Records in the ring that wait to be read, in bytes."
)
_MAX_RING = Description(
    "dynahugd_self_ring_max_bytes", "gauge", (), "What the ring has room for, in bytes."
)
_READ = Description(
    "dynahugd_self_ring_read_bytes",
    "counter",
    (),
    "Records read from the ring, in bytes; dynahugd_records_total counts them by kind.",
)
_SECONDS = Description(
    "dynahugd_self_program_seconds",
    "counter",
    ("program",),
    "Run time of each program in the kernel; only while kernel.bpf_stats_enabled is 1.",
)
_RUNS = Description(
    "dynahugd_self_program_runs",
    "counter",
    ("program",),
    "Runs of each program in the kernel; only while kernel.bpf_stats_enabled is 1.",
)

METRICS = (_CPU, _MEMORY, _ENTRIES, _MAX_ENTRIES, _RING, _MAX_RING, _READ, _SECONDS, _RUNS)


def _resident(status: str, kind: str) -> int:
    found = re.search(rf"^Rss{kind}:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def families(usage: Usage) -> Iterator[Metric]:
    """The families: of the kernel's side by ``usage``, of this process as it is now."""
    times = os.times()
    yield _CPU.counter(((("user",), times.user), (("system",), times.system)))
    status = Path("/proc/self/status").read_text()
    mapped = _resident(status, "File") + _resident(status, "Shmem")
    yield _MEMORY.gauge(
        (
            (("private",), _resident(status, "Anon")),
            (("mapped",), mapped),
            (("kernel",), usage.memory),
        )
    )
    yield _ENTRIES.gauge(((table,), used) for table, (used, _) in usage.tables.items())
    yield _MAX_ENTRIES.gauge(((table,), most) for table, (_, most) in usage.tables.items())
    yield _RING.gauge((((), usage.waiting),))
    yield _MAX_RING.gauge((((), usage.ring),))
    yield _READ.counter((((), usage.read),))
    yield _SECONDS.counter(((name,), spent) for name, (spent, _) in usage.programs.items())
    yield _RUNS.counter(((name,), runs) for name, (_, runs) in usage.programs.items())
