"""What the daemon costs at rest: seconds until it is ready, memory, CPU while nothing loads.

    sudo .venv/bin/python -m benchmarks.startup [--rounds 5]

One row a loader, medians over fresh daemons. ``resident`` is the proportional set size (PSS), in
which memory shared with other processes counts by its share; ``peak`` is the highest resident set.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

from tests.conftest import LOADERS
from tests.harness import RunningDaemon

#: Seconds over which the CPU at rest is measured.
_REST = 5.0


def _kibibytes(process: int, file: str, field: str) -> int:
    text = Path(f"/proc/{process}/{file}").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/{process}/{file} has no {field}")
    return int(found[1])


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(loader: str) -> tuple[float, float, float, float]:
    """One daemon: seconds from its start to ready, resident and peak MiB, CPU at rest in %."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningDaemon(Path(folder), "--loader", loader) as daemon,
    ):
        ready = time.monotonic() - daemon.started
        process = daemon.process.pid
        before = _cpu_seconds(process)
        time.sleep(_REST)
        spent = _cpu_seconds(process) - before
        resident = _kibibytes(process, "smaps_rollup", "Pss") / 1024
        peak = _kibibytes(process, "status", "VmHWM") / 1024
    return ready, resident, peak, 100 * spent / _REST


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("| loader | ready, s | resident, MiB | peak, MiB | CPU at rest, % |")
    print("|---|---|---|---|---|")
    measured: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in LOADERS}
    for _ in range(rounds):
        for loader in LOADERS:
            measured[loader].append(measure(loader))
    for loader, runs in measured.items():
        cells = (statistics.median(column) for column in zip(*runs, strict=True))
        ready, resident, peak, rest = cells
        print(f"| {loader} | {ready:.2f} | {resident:.0f} | {peak:.0f} | {rest:.1f} |")


if __name__ == "__main__":
    main()
