"""The daemon itself: its start, its memory, its CPU at rest and by loads."""

from __future__ import annotations

import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.cost.conditions import Condition, interleave, progress
from benchmarks.cost.figures import Goal, Row, Samples, Section, Table, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.processes import mebibytes
from benchmarks.cost.tracers import COUNTING, bpftrace
from benchmarks.cost.watching import Daemon, watching
from dynahugd.baseline import Baseline, embedded
from dynahugd.features.rows import Row as Counts
from tests.conftest import LOADERS

__all__ = ["measure"]

_ABOUT = """
Start: from the start of the process to "ready". Memory: RSS, and PSS, in which what is shared with
other processes counts by its share; a second after the start. At rest: a Python lives and loads
nothing. CPU a load is the daemon's, user and system, without what it takes at rest: of a process
that loads a pickle again and again, with pauses and without, of torch.load of 20 KB, and of
processes that load one pickle each.
"""
_LOADS = """
import pickle, sys, time
path, loads, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for _ in range(loads):
    with open(path, "rb") as file: pickle.load(file)
    if pause: time.sleep(pause)
"""
_TORCH_LOADS = """
import sys, time, torch
path, loads = sys.argv[1], int(sys.argv[2])
torch.save({"weight": torch.rand(5000)}, path)
time.sleep(0.5)
for _ in range(loads): torch.load(path)
"""
_CASES = ("pickles, 200 a second", "pickles, without a pause", "torch.load of 20 KB", "processes")


def _started(loader: str) -> dict[str, float]:
    with watching("--loader", loader) as daemon:
        time.sleep(1)
        return {"ready": daemon.ready} | _memory(daemon.pid)


def _memory(pid: int) -> dict[str, float]:
    return {field: mebibytes(pid, field) for field in ("VmRSS", "Pss")}


def _load(case: str, folder: Path, loads: int) -> None:
    """Perform loads."""
    pickled = folder / "model.pkl"
    pickled.write_bytes(pickle.dumps(list(range(100))))
    python = [sys.executable, "-c"]
    if case == _CASES[3]:
        for _ in range(loads):
            subprocess.run([*python, _LOADS, str(pickled), "1", "0"], check=True)
    elif case == _CASES[2]:
        command = [*python, _TORCH_LOADS, str(folder / "model.pt"), str(loads)]
        subprocess.run(command, check=True)
    else:
        pause = "0.005" if case == _CASES[0] else "0"
        subprocess.run([*python, _LOADS, str(pickled), str(loads), pause], check=True)


def _cpu_of(daemon: Daemon, case: str, folder: Path, loads: int, at_rest: float) -> float:
    """CPU seconds of the daemon for each load that it has seen."""
    seen = daemon.total("dynahugd_loads_total")
    before, begun = daemon.cpu(), time.monotonic()
    _load(case, folder, loads)
    time.sleep(1)
    spent = daemon.cpu() - before - at_rest * (time.monotonic() - begun)
    daemon.wait_for(lambda: daemon.total("dynahugd_loads_total") - seen >= loads, 10)
    counted = daemon.total("dynahugd_loads_total") - seen
    if counted < loads:
        progress(f"  the daemon has seen {counted:.0f} of {loads} loads: {case}")
    return spent / max(min(counted, loads), 1)


def _worked(loader: str, level: Level, folder: Path) -> dict[str, float]:
    """CPU at rest as a share of a core, and CPU seconds a load by case."""
    rest, loads = level.pick(60.0, 10.0, 0.5), level.pick(1000, 200, 5)
    with watching("--loader", loader) as daemon:
        time.sleep(1)
        before = daemon.cpu()
        time.sleep(rest)
        share = (daemon.cpu() - before) / rest
        cases = _CASES if level is not Level.TINY else _CASES[:2]
        figures = {
            case: _cpu_of(daemon, case, folder, loads // (5 if case == _CASES[3] else 1), share)
            for case in cases
        }
    return {"rest": share} | figures


def _ordinary(baseline: Baseline) -> list[Counts]:
    """The median row of each cluster."""
    rows = []
    for cluster in baseline.clusters:
        places = np.flatnonzero(cluster.seen)
        counts = zip(places.tolist(), cluster.median.tolist(), strict=True)
        rows.append(Counts("whole", {baseline.columns[i]: int(n) for i, n in counts if n >= 1}))
    return rows


def _scoring(turns: int) -> dict[str, float]:
    """Seconds to score a row, with and without its reasons."""
    baseline = embedded()
    rows = _ordinary(baseline)
    taken: dict[str, list[float]] = {"with reasons": [], "without": []}
    for _ in range(turns):
        for name, times in taken.items():
            for row in rows:
                begun = time.perf_counter()
                baseline.score(row, reasons=name == "with reasons")
                times.append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}


def _at_start(samples: Samples) -> Iterator[Row]:
    for loader in LOADERS:
        ready, rss, pss = (samples.median(case, loader) for case in ("ready", "VmRSS", "Pss"))
        rounds = str(samples.rounds("ready", loader))
        yield Row(
            (loader, "ready", seconds(ready), rounds), Goal("<= 0.5 s", ready, 0.5, seconds(ready))
        )
        resident = f"{rss:.0f} MiB"
        yield Row((loader, "RSS", resident, rounds), Goal("<= 64 MiB", rss, 64, resident))
        yield Row((loader, "PSS", f"{pss:.0f} MiB", rounds))


def _at_work(loader: str, figures: dict[str, float]) -> Iterator[Row]:
    share = 100 * figures["rest"]
    shown = f"{share:.2f} %"
    yield Row((loader, "CPU at rest", shown, "1"), Goal("<= 0.2 %", share, 0.2, shown))
    for case in _CASES:
        if case in figures:
            shown = seconds(figures[case])
            goal = Goal("<= 100 us", figures[case], 100e-6, shown)
            yield Row((loader, f"CPU a load: {case}", shown, "1"), goal)


def measure(level: Level, folder: Path) -> Section:
    """Measure daemons of both loaders."""
    conditions = [Condition(loader) for loader in LOADERS]
    samples = interleave(conditions, level.pick(7, 2, 1), lambda c: _started(c.name))
    rows = list(_at_start(samples))
    for loader in LOADERS:
        progress(f"  at rest and at work: {loader}")
        rows += _at_work(loader, _worked(loader, level, folder))
    for name, taken in _scoring(level.pick(100, 20, 1)).items():
        rows.append(Row(("-", f"scoring of one row, {name}", seconds(taken), "-")))
    with bpftrace(COUNTING) as pid:
        for field, value in _memory(pid).items():
            rows.append(
                Row(("bpftrace", "RSS" if field == "VmRSS" else "PSS", f"{value:.0f} MiB", "1"))
            )
    header = ("loader", "", "figure", "rounds")
    return Section("The daemon", _ABOUT, (Table("", header, tuple(rows)),))
