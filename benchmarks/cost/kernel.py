"""The kernel side: how long each program of the daemon runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cost.conditions import progress
from benchmarks.cost.figures import Row, Section, Table, count, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.watching import watching

__all__ = ["measure"]

_ABOUT = """
Time in each program by the kernel's own statistics (`kernel.bpf_stats_enabled`), which add some
tens of nanoseconds to a run. What it takes to get there, a trap for a uprobe above all, is not in
it: the interpreter's figures have that.
"""
_SWITCH = Path("/proc/sys/kernel/bpf_stats_enabled")
_LOADS = """
import collections, pickle, sys
path, loads, messages = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
message = pickle.dumps(collections.OrderedDict(a=1))
for _ in range(loads):
    with open(path, "rb") as file: pickle.load(file)
for _ in range(messages): pickle.loads(message)
"""


@contextmanager
def _statistics() -> Iterator[None]:
    before = _SWITCH.read_text()
    _SWITCH.write_text("1")
    try:
        yield
    finally:
        _SWITCH.write_text(before)


def _programs() -> dict[int, tuple[str, int, int]]:
    """Name, runs and ns of the daemon's programs by id."""
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True)
    return {
        item["id"]: (item["name"], item.get("run_cnt", 0), item.get("run_time_ns", 0))
        for item in json.loads(shown.stdout)
        if item.get("name", "").startswith("dh_")
    }


def measure(level: Level, folder: Path) -> Section:
    """Measure while a process loads a pickle and unpickles messages."""
    model = folder / "model.pkl"
    model.write_bytes(b"ccollections\nOrderedDict\n0" * 10 + b"N.")
    loads, messages = level.pick("2000", "500", "10"), level.pick("200000", "20000", "100")
    others = set(_programs())
    progress("  under a daemon, with statistics")
    with _statistics(), watching():
        command = [sys.executable, "-c", _LOADS, str(model), loads, messages]
        subprocess.run(command, check=True)
        ran = [item for key, item in _programs().items() if key not in others and item[1]]
    total = sum(ns for _, _, ns in ran) or 1
    rows = tuple(
        Row((f"`{name}`", count(runs), seconds(ns / runs / 1e9), f"{100 * ns / total:.0f} %"))
        for name, runs, ns in sorted(ran, key=lambda item: -item[2])
    )
    about = (
        f"{_ABOUT}\nA process loads a pickle of 10 globals {loads} times, then a message of one "
        f"global {messages} times."
    )
    header = ("program", "runs", "a run", "share")
    return Section("The kernel side", about, (Table("", header, rows),))
