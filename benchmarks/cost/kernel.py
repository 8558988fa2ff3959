"""The kernel side: how long each program of the daemon runs, and what other ways would take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.cost.conditions import progress
from benchmarks.cost.figures import Row, Samples, Section, Table, count, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.programs import compile_bpf, compile_c
from benchmarks.cost.watching import watching

__all__ = ["measure"]

_ABOUT = """
Time in each program by the kernel's own statistics (`kernel.bpf_stats_enabled`), which add some
tens of nanoseconds to a run. What it takes to get there, a trap for a uprobe above all, is not in
it: the interpreter's figures have that.
"""
_ABOUT_WAYS = """
Ways to do what is done on every system call, each as the only program on the host: time of a
`getppid` of a process that is not followed, alone and while another processor does the same.
"""
_WAYS = {
    "nothing": "",
    "a tracepoint on another call": "one",
    "an empty program": "every",
    "is the task followed: hash": "by_hash",
    "is the task followed: a byte": "by_byte",
    "is the task followed: task storage": "by_storage",
    "count: atomic": "atomic",
    "count: per CPU": "per_cpu",
}
_ALONE, _TWO = "alone", "two at once"
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


@contextmanager
def _attached(folder: Path, program: str) -> Iterator[None]:
    if not program:
        yield
        return
    command = [str(folder / "least"), str(folder / "least.o"), program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"attached\n":
                raise RuntimeError(f"the kernel refuses the program {program!r}")
            yield
        finally:
            process.terminate()


def _ns(folder: Path, calls: str, processors: int) -> float:
    """Nanoseconds of a call, the slowest of some processes at once."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    ["taskset", "-c", str(number), str(folder / "getppid"), calls],
                    stdout=subprocess.PIPE,
                )
            )
            for number in range(processors)
        ]
        return max(float(process.communicate()[0]) for process in processes)


def _ways(level: Level, folder: Path) -> Table:
    """The ways, one after the other in each round."""
    compile_bpf("least", folder / "least.o")
    compile_c("least", folder / "least", "bpf")
    compile_c("getppid", folder / "getppid")
    calls, samples = level.pick("300000", "100000", "1000"), Samples()
    processors = {_ALONE: 1} | ({_TWO: 2} if (os.cpu_count() or 1) > 1 else {})
    for turn in range(level.pick(7, 3, 1)):
        progress(f"  round {turn + 1} of the ways")
        for way, program in _WAYS.items():
            with _attached(folder, program):
                for where, number in processors.items():
                    samples.add(where, way, turn, _ns(folder, calls, number) / 1e9)
    rows = []
    for way in _WAYS:
        cells = [way]
        for where in processors:
            more = samples.difference(where, way, "nothing")
            cells += [seconds(samples.median(where, way)), seconds(more)]
        values = {"more": samples.difference(_ALONE, way, "nothing")}
        rows.append(Row((*cells, str(samples.rounds(_ALONE, way))), None, values))
    header = [""]
    for where in processors:
        header += [where, "more than nothing"]
    return Table("Ways", (*header, "rounds"), tuple(rows), _ABOUT_WAYS)


def measure(level: Level, folder: Path) -> Section:
    """Measure while a process loads a pickle and unpickles messages."""
    model = folder / "model.pkl"
    model.write_bytes(b"ccollections\nOrderedDict\n0" * 10 + b"N.")
    loads, messages = level.pick("2000", "500", "10"), level.pick("200000", "20000", "100")
    ways = _ways(level, folder)
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
    return Section("The kernel side", about, (Table("", header, rows), ways))
