"""Time to alert: from a malicious load to the alert log and to /metrics."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cost.conditions import progress
from benchmarks.cost.figures import Goal, Row, Section, Table, seconds
from benchmarks.cost.level import Level
from benchmarks.cost.watching import Daemon, watching

__all__ = ["measure"]

_ABOUT = """
A process unpickles `posix.system`, in a file and in memory by turns, with pauses of random length.
The clock starts before it opens the file, or calls `pickle.loads`: a little before the first
telling act, which is that the global is resolved. It stops when the alert is in the alert log,
looked at every 0.2 ms, or, by turns, when a scrape of /metrics shows one alert more; the next
scrape begins when the one before is answered.
"""
_VICTIM = """
import pickle, sys, time
for line in sys.stdin:
    way, path = line.split()
    begun = time.monotonic_ns()
    if way == "file":
        with open(path, "rb") as file: pickle.load(file)
    else:
        pickle.loads(MESSAGE)
    print(begun, flush=True)
"""
_MALICIOUS = b"cposix\nsystem\n(S'true'\ntR."
#: Looks whether there is an alert more than there was.
Look = Callable[[], bool]


def _in_log(daemon: Daemon) -> Look:
    """Lines on earlier loads, whose last word comes when they are over, do not count."""
    seen = daemon.alert_log.stat().st_size

    def look() -> bool:
        nonlocal seen
        with daemon.alert_log.open("rb") as file:
            file.seek(seen)
            lines = file.read().split(b"\n")[:-1]
        seen += sum(len(line) + 1 for line in lines)
        if any(json.loads(line)["stage"] == "alert" for line in lines):
            return True
        time.sleep(0.0002)
        return False

    return look


def _in_metrics(daemon: Daemon) -> Look:
    before = daemon.total("dynahugd_alerts_total")
    return lambda: daemon.total("dynahugd_alerts_total") > before


def _latencies(daemon: Daemon, model: Path, loads: int) -> dict[str, list[float]]:
    """Seconds from each load to its alert, by where it was looked for."""
    places = {"the alert log": _in_log, "/metrics": _in_metrics}
    found: dict[str, list[float]] = {place: [] for place in places}
    source = _VICTIM.replace("MESSAGE", repr(_MALICIOUS))
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdin is not None
        assert victim.stdout is not None
        for number in range(loads):
            time.sleep(random.uniform(0, 0.02))
            place = list(places)[number % 2]
            look = places[place](daemon)
            victim.stdin.write(f"{'file' if number % 4 < 2 else 'memory'} {model}\n")
            victim.stdin.flush()
            end = time.monotonic() + 10
            while not look():
                if time.monotonic() > end:
                    raise RuntimeError(f"no alert of load {number} in {place}")
            seen = time.monotonic_ns()
            found[place].append((seen - int(victim.stdout.readline())) / 1e9)
        victim.stdin.close()
    return found


def measure(level: Level, folder: Path) -> Section:
    """Measure loads, one after the other."""
    model = folder / "model.pkl"
    model.write_bytes(_MALICIOUS)
    loads = level.pick(1000, 100, 8)
    progress(f"  {loads} malicious loads")
    with watching() as daemon:
        found = _latencies(daemon, model, loads)
    rows = []
    for place, latencies in found.items():
        tenths = np.quantile(latencies, [0.5, 0.99, 1]).tolist()
        for name, value, most in zip(("p50", "p99", "most"), tenths, (0.01, 0.05, 0), strict=True):
            goal = Goal(f"<= {seconds(most)}", value, most, seconds(value)) if most else None
            rows.append(Row((place, name, seconds(value), str(len(latencies))), goal))
    header = ("alert in", "", "after", "loads")
    return Section("Time to alert", _ABOUT, (Table("", header, tuple(rows)),))
