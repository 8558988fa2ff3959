"""Seconds from a malicious load to the alert at Alertmanager: by scrape and, if asked for, by push.

    sudo .venv/bin/python -m benchmarks.alerting [--rounds 10] [--interval 5] [--push]

Each round has a daemon, a Prometheus and an Alertmanager of its own, with the rules and routes of
``monitoring/``. The load comes at a random time between two scrapes. The clock runs from the line
before ``pickle.load`` until the alert is at Alertmanager's API, which is asked every 20 ms.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests import servers
from tests.harness import RunningDaemon

_LOAD = """
import pickle, sys, time
file = open(sys.argv[1], "rb")
print(time.time(), flush=True)
pickle.load(file)
"""
_MALICIOUS = b"cos\nsystem\n(S'true'\ntR."


def _load(folder: Path, manager: servers.Alertmanager) -> float:
    """Perform a malicious load; seconds until Alertmanager has the alert."""
    file = folder / "model.pkl"
    file.write_bytes(_MALICIOUS)
    with subprocess.Popen(
        [sys.executable, "-c", _LOAD, str(file)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        begun = float(process.stdout.readline())
        servers.wait_for(lambda: manager.alerts("DynahugdAnomalousLoad"), "alert", 120)
        return time.time() - begun


def by_scrape(folder: Path, interval: int) -> float:
    """One round in which Prometheus scrapes and evaluates its rules every so many seconds."""
    with ExitStack() as stack:
        daemon = stack.enter_context(RunningDaemon(folder))
        manager = stack.enter_context(servers.alertmanager(folder / "alertmanager"))
        prometheus = stack.enter_context(
            servers.prometheus(
                folder / "prometheus",
                daemon.url.removeprefix("http://"),
                manager.url.removeprefix("http://"),
                interval,
            )
        )
        servers.wait_for(lambda: prometheus.query("dynahugd_ready == 1"), "scrape", 60)
        time.sleep(random.uniform(0, interval))
        return _load(folder, manager)


def by_push(folder: Path) -> float:
    """One round in which the daemon pushes, and nobody scrapes."""
    with servers.alertmanager(folder / "alertmanager") as manager:
        config = folder / "dynahugd.toml"
        config.write_text(f'[alertmanager]\nurls = ["{manager.url}"]\n')
        with RunningDaemon(folder, "--config", str(config)):
            time.sleep(random.uniform(2, 3))  # its first request, which has no alert, is over
            return _load(folder, manager)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--interval", type=int, default=5, help="of scrapes and rules, in seconds")
    parser.add_argument("--push", action="store_true", help="measure the daemon's own pushes too")
    given = parser.parse_args()
    ways: dict[str, Callable[[Path], float]] = {
        f"by scrape at {given.interval} s": lambda folder: by_scrape(folder, given.interval)
    }
    if given.push:
        ways["by push"] = by_push
    print("| alert at Alertmanager | rounds | median, s | max, s |")
    print("|---|---|---|---|")
    for name, way in ways.items():
        seconds = []
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(way(Path(folder)))
        median, most = statistics.median(seconds), max(seconds)
        print(f"| {name} | {given.rounds} | {median:.2f} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
