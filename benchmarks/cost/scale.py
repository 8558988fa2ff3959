"""Scale: many loads open at once, loads in bursts, many processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections import OrderedDict, deque
from fractions import Fraction
from pathlib import Path

from benchmarks.cost.conditions import progress
from benchmarks.cost.figures import Goal, Row, Section, Table, count, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.programs import compile_c
from benchmarks.cost.watching import Daemon, tracked_tasks, watching

__all__ = ["measure"]

_ABOUT = """
Open loads: a C program, an ML process by its name, holds a model file open in each of some threads,
each of which makes system calls four times a second; the daemon's CPU is taken over the last
seconds. Bursts: a Python opens and unpickles a file of three globals at a rate, or as fast as it
can; "late" is how long after the last load the daemon has counted all. Forks: a C program, an ML
process by its name, forks children that exit at once; afterwards the daemon has to track no more
tasks than before.
"""
_BURST = """
import pickle, sys, time
path, rate, length = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
begun, done = time.perf_counter(), 0
while (at := time.perf_counter() - begun) < length:
    if done > at * rate:
        time.sleep(0.001)
        continue
    with open(path, "rb") as file: pickle.load(file)
    done += 1
print(done, time.perf_counter() - begun)
"""
_LOADS, _LOST = "dynahugd_loads_total", "dynahugd_records_lost_total"


def _lost(daemon: Daemon) -> str:
    """What was lost, by reason."""
    lost = {
        name.partition('reason="')[2].rstrip('"}'): int(value)
        for name, value in daemon.metrics().items()
        if name.startswith(f"{_LOST}{{") and value
    }
    return ", ".join(f"{number} {reason}" for reason, number in lost.items()) or "0"


def _open_loads(level: Level, folder: Path, model: Path) -> Table:
    """CPU by number of open loads, and by their system calls."""
    hold = compile_c("hold", folder / "python-hold")
    settle, length = level.pick((2.0, 5.0), (2.0, 3.0), (0.5, 0.5))
    rows = []
    sweep = [(loads, 10_000) for loads in level.pick((1, 10, 100, 1000), (1, 100, 1000), (3,))]
    sweep += [(10, calls) for calls in level.pick((100, 100_000, 1_000_000), (1_000_000,), ())]
    for loads, calls in sweep:
        progress(f"  {loads} loads open, {calls} calls a second")
        with watching() as daemon:
            arguments = [str(model), str(loads), str(calls), str(settle + length + 1)]
            with subprocess.Popen([str(hold), *arguments]):
                time.sleep(settle)
                before, begun = daemon.cpu(), time.monotonic()
                time.sleep(length)
                share = (daemon.cpu() - before) / (time.monotonic() - begun)
                seen = daemon.total("dynahugd_loads_open")
            lost = daemon.total(_LOST)
            cells = (
                count(loads),
                f"{seen:.0f}",
                count(calls),
                f"{100 * share:.1f} %",
                seconds(share / loads),
                _lost(daemon),
            )
            values = {"loads": loads, "calls": calls, "cpu": share}
            rows.append(Row(cells, Goal("none lost", lost, 0, count(lost)), values))
    header = ("loads", "seen", "calls/s", "CPU of the daemon", "a load and second", "lost")
    return Table("Loads open at once", header, tuple(rows))


def _burst(daemon: Daemon, model: Path, rate: float, length: float) -> Row:
    counted = daemon.total(_LOADS)
    unsure = daemon.total(_LOADS, 'verdict="inconclusive"')
    before = daemon.cpu()
    arguments = [str(model), str(rate), str(length)]
    done = subprocess.run(
        [sys.executable, "-c", _BURST, *arguments], check=True, stdout=subprocess.PIPE
    )
    ended = time.monotonic()
    loads, taken = int(done.stdout.split()[0]), float(done.stdout.split()[1])
    daemon.wait_for(lambda: daemon.total(_LOADS) - counted >= loads, 20)
    late = time.monotonic() - ended
    spent = daemon.cpu() - before
    seen = daemon.total(_LOADS) - counted
    unsure = daemon.total(_LOADS, 'verdict="inconclusive"') - unsure
    missing = loads - seen
    lost = daemon.total(_LOST)
    cells = (
        count(rate) if rate < 1e6 else "all",
        count(loads / taken),
        str(loads),
        f"{seen:.0f}",
        f"{unsure:.0f}",
        _lost(daemon),
        seconds(spent / loads),
        seconds(late),
    )
    wrong = max(missing, lost) + unsure
    values = {"rate": loads / taken, "cpu": spent / loads, "late": late, "wrong": wrong / loads}
    return Row(cells, Goal("none lost", wrong, 0, count(wrong)), values)


def _bursts(level: Level, model: Path) -> Table:
    rows = []
    for rate in level.pick((100, 1_000, 3_000, 10_000, 1e9), (100, 1_000, 10_000), (50,)):
        progress(f"  {rate:.0f} loads a second")
        with watching() as daemon:
            rows.append(_burst(daemon, model, rate, level.pick(3.0, 2.0, 0.2)))
    header = (
        "loads/s, asked",
        "made",
        "loads",
        "seen",
        "inconclusive",
        "lost",
        "CPU a load",
        "late",
    )
    return Table("Bursts of loads", header, tuple(rows))


def _timed(command: list[str]) -> float:
    begun = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - begun


def _forks(level: Level, folder: Path, model: Path) -> Table:
    program = compile_c("forks", folder / "python-forks")
    number = level.pick(50_000, 5_000, 50)
    rows = []
    for where, more in (("an ML process", []), ("a load", [str(model)])):
        progress(f"  {number} processes forked in {where}")
        command = [str(program), str(number), *more]
        alone = _timed(command)
        with watching() as daemon:
            tasks, before = tracked_tasks(daemon.pid), daemon.cpu()
            taken = _timed(command)
            time.sleep(1)
            spent, left = daemon.cpu() - before, tracked_tasks(daemon.pid)
            lost = daemon.total(_LOST)
            cells = (
                where,
                count(number),
                seconds(alone / number),
                f"{seconds(taken / number)} ({taken / alone:.2f}x)",
                seconds(spent / number),
                f"{tasks} / {left}",
                _lost(daemon),
            )
        over = 0 if tasks is None or left is None else max(left - tasks, 0)
        goal = Goal("none lost, no task left", lost + over, 0, count(lost + over))
        rows.append(Row(cells, goal, {"fork": taken / number, "cpu": spent / number}))
    header = (
        "forked in",
        "processes",
        "a fork, no daemon",
        "with it",
        "CPU of the daemon, a fork",
        "tasks before / after",
        "lost",
    )
    return Table("Processes forked", header, tuple(rows))


def measure(level: Level, folder: Path) -> Section:
    """Measure, each line under a daemon of its own."""
    model = folder / "model.pkl"
    model.write_bytes(pickle.dumps([OrderedDict(), deque(), Fraction(1, 3)]))
    tables = (
        _open_loads(level, folder, model),
        _bursts(level, model),
        _forks(level, folder, model),
    )
    return Section("Scale", _ABOUT, tables)
