"""Training: seconds, memory and AUC by number of rows, beside scikit-learn's one-class SVM."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import paper
from benchmarks.cost.conditions import progress
from benchmarks.cost.figures import Goal, Row, Section, Table, count, seconds
from benchmarks.cost.fit import METHODS, Fit
from benchmarks.cost.level import Level
from benchmarks.lab.report import Recordings
from benchmarks.paper import Floats
from dynahugd.features import Classifier
from dynahugd.features import Row as Counts

__all__ = ["measure"]

_ABOUT = """
Each fit has a process of its own, both cores, and {limit:.0f} s; a size is left out where the one
before, times the rows, would take more than twice that. Rows are {source}, more by bootstrap. The
AUC is for comparing methods on such rows, not what the daemon reaches; its loss at a size is to the
best of all fits to as many rows or fewer. Memory is the highest resident set, the rows in it.
OneClassSVM and Nystroem have the paper's features, kernel and nu.
"""
_LAB = Path("build/lab")
#: Of the laboratory's environments, enough for thousands of loads.
_ENVIRONMENTS = ("host", "container", "cold-cache")
_OF_PAPER = "system-call counts of the DynaHug paper's data, which every method tells apart"
_OF_LAB = (
    "system-call counts alone of the laboratory's loads (without files, programs, peers, globals)"
)
_GOAL_ROWS, _MOST_ROWS = 100_000, 1_000_000
#: As much memory as a small build host has to spare, in MiB.
_MEMORY = 2048.0
_NEVER = float("inf")


def _whole(rows: Sequence[Counts]) -> dict[str, int]:
    """The last row of the whole load."""
    return [row for row in rows if row.window == "whole"][-1].counts


def _of_lab() -> tuple[Floats, Floats]:
    """Benign and malicious rows of the laboratory's recordings."""
    recordings = Recordings(_LAB)
    found = {
        kind: [
            _whole(sample.rows)
            for name in _ENVIRONMENTS
            for sample in recordings.samples(name, kind, Classifier())
        ]
        for kind in ("benign", "malicious")
    }
    every = (name for rows in found.values() for counts in rows for name in counts)
    columns = sorted({name for name in every if name.startswith("calls.")})
    benign, malicious = (
        np.array([[counts.get(name, 0) for name in columns] for counts in rows], float)
        for rows in found.values()
    )
    return benign, malicious


def _of_paper() -> tuple[Floats, Floats]:
    data = paper.read()
    malicious = data.rows("text-generation", "malhug_injected")
    benign = data.rows("text-generation", "train_benign", "calib_benign", "test_benign")
    return data.counts[benign], data.counts[malicious]


def _rows(level: Level) -> tuple[Floats, Floats, str]:
    kinds = ("benign.parquet", "malicious.parquet", "absent.txt")
    files = [_LAB / f"{name}-{kind}" for name in _ENVIRONMENTS for kind in kinds]
    if level is not Level.TINY and all(file.exists() for file in files):
        return *_of_lab(), _OF_LAB
    return *_of_paper(), _OF_PAPER


def _fit(file: Path, method: str, rows: int, limit: float) -> Fit | str:
    """The fit, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.cost.fit", str(file), method, str(rows)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return "out of memory" if "MemoryError" in last else last[:100]
    return Fit(**json.loads(done.stdout))


def _fits(file: Path, sizes: Sequence[int], limit: float) -> dict[tuple[str, int], Fit | str]:
    found: dict[tuple[str, int], Fit | str] = {}
    for method in METHODS:
        before: Fit | str = Fit(0, 0, 0)
        for smaller, rows in zip((sizes[0], *sizes), sizes, strict=False):
            progress(f"  {method}: {rows} rows")
            if isinstance(before, str):
                before = "left out"
            elif before.seconds * rows / smaller > 2 * limit:
                before = f"left out: more than {2 * limit:.0f} s"
            else:
                before = _fit(file, method, rows, limit)
            found[method, rows] = before
    return found


def _goal(done: Fit | str, rows: int) -> Goal | None:
    """The goal of our own method at a size."""
    taken, peak = (_NEVER, _NEVER) if isinstance(done, str) else (done.seconds, done.peak)
    if rows == _GOAL_ROWS:
        return Goal("<= 60 s", taken, 60, seconds(taken))
    if rows == _MOST_ROWS:
        return Goal("<= 2 GiB", peak, _MEMORY, f"{peak:.0f} MiB")
    return None


def _table(fits: dict[tuple[str, int], Fit | str]) -> Iterator[Row]:
    ours = next(iter(METHODS))
    for (method, rows), done in fits.items():
        if isinstance(done, str):
            cells: tuple[str, ...] = (done, "-", "-")
            values = {}
        else:
            cells = (seconds(done.seconds), f"{done.peak:.0f} MiB", f"{done.auc:.4f}")
            values = {"rows": rows, "seconds": done.seconds, "memory": done.peak * 2**20}
        goal = _goal(done, rows) if method == ours else None
        yield Row((method, count(rows), *cells), goal, values)
    for rows in (_GOAL_ROWS, _MOST_ROWS):
        if (ours, rows) in fits:
            yield _loss(fits, fits[ours, rows], rows)


def _loss(fits: dict[tuple[str, int], Fit | str], ours: Fit | str, rows: int) -> Row:
    """How far our own method's AUC at a size is below the best of all."""
    best = max(
        (fit.auc for (_, size), fit in fits.items() if isinstance(fit, Fit) and size <= rows),
        default=0.0,
    )
    loss = _NEVER if isinstance(ours, str) else best - ours.auc
    cells = ("AUC below the best of all", count(rows), "-", "-", f"{loss:.4f}")
    return Row(cells, Goal("<= 0.005", loss, 0.005, cells[-1]))


def measure(level: Level, folder: Path) -> Section:
    """Fit by each method to ever more rows."""
    benign, malicious, source = _rows(level)
    file = folder / "rows.npz"
    np.savez(file, benign=benign, malicious=malicious)
    limit = level.pick(150.0, 60.0, 10.0)
    sizes = level.pick((1_000, 10_000, _GOAL_ROWS, _MOST_ROWS), (1_000, 10_000), (100,))
    rows = _table(_fits(file, sizes, limit))
    header = ("method", "rows", "time", "memory", "AUC")
    about = _ABOUT.format(limit=limit, source=source)
    return Section("Training", about, (Table("", header, tuple(rows)),))
