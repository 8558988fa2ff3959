"""Training: seconds, memory and AUC by number of rows, beside scikit-learn's one-class SVM."""

from __future__ import annotations

import json
import statistics
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
before, times the rows, would take more than twice that. Up to {repeated} rows, figures are medians
of {seeds} seeds, each of which holds out other rows; AUC: with half of the distance between the
least and the greatest. Rows are {source}, more by bootstrap. The AUC is for comparing methods on
such rows, not what the daemon reaches; the loss is to the best of all fits, of as many rows or
fewer. Memory is the highest resident set, the rows in it. OneClassSVM and Nystroem have the paper's
features, kernel and nu.
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
_SEEDS = 3


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


#: Fits by seed, or why there are none.
_Done = list[Fit] | str


def _fit(file: Path, method: str, rows: int, seed: int, limit: float) -> Fit | str:
    """The fit, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.cost.fit", str(file), method, str(rows), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return "out of memory" if "MemoryError" in last else last[:100]
    return Fit(**json.loads(done.stdout))


def _repeated(file: Path, method: str, rows: int, limit: float) -> _Done:
    fits = []
    for seed in range(_SEEDS if rows <= _GOAL_ROWS else 1):
        found = _fit(file, method, rows, seed, limit)
        if isinstance(found, str):
            return found
        fits.append(found)
    return fits


def _taken(fits: list[Fit]) -> float:
    return statistics.median(fit.seconds for fit in fits)


def _peak(fits: list[Fit]) -> float:
    return max(fit.peak for fit in fits)


def _auc(fits: list[Fit]) -> float:
    return statistics.median(fit.auc for fit in fits)


def _fits(file: Path, sizes: Sequence[int], limit: float) -> dict[tuple[str, int], _Done]:
    found: dict[tuple[str, int], _Done] = {}
    for method in METHODS:
        before: _Done = [Fit(0, 0, 0)]
        for smaller, rows in zip((sizes[0], *sizes), sizes, strict=False):
            progress(f"  {method}: {rows} rows")
            if isinstance(before, str):
                before = "left out"
            elif _taken(before) * rows / smaller > 2 * limit:
                before = f"left out: more than {2 * limit:.0f} s"
            else:
                before = _repeated(file, method, rows, limit)
            found[method, rows] = before
    return found


def _goal(done: _Done, rows: int) -> Goal | None:
    """The goal of our own method at a size."""
    taken, peak = (_NEVER, _NEVER) if isinstance(done, str) else (_taken(done), _peak(done))
    if rows == _GOAL_ROWS:
        return Goal("<= 60 s", taken, 60, seconds(taken))
    if rows == _MOST_ROWS:
        return Goal("<= 2 GiB", peak, _MEMORY, f"{peak:.0f} MiB")
    return None


def _table(fits: dict[tuple[str, int], _Done]) -> Iterator[Row]:
    ours = next(iter(METHODS))
    for (method, rows), done in fits.items():
        if isinstance(done, str):
            cells: tuple[str, ...] = (done, "-", "-")
            values = {}
        else:
            aucs = [fit.auc for fit in done]
            auc = f"{_auc(done):.4f}"
            if len(aucs) > 1:
                auc += f" ±{(max(aucs) - min(aucs)) / 2:.4f}"
            cells = (seconds(_taken(done)), f"{_peak(done):.0f} MiB", auc)
            values = {"rows": rows, "seconds": _taken(done), "memory": _peak(done) * 2**20}
        goal = _goal(done, rows) if method == ours else None
        yield Row((method, count(rows), *cells), goal, values)
    if (ours, _GOAL_ROWS) in fits:
        yield _loss(fits, fits[ours, _GOAL_ROWS])


def _loss(fits: dict[tuple[str, int], _Done], ours: _Done) -> Row:
    """How far our own method's AUC is below the best of all."""
    best = max(
        (
            _auc(done)
            for (_, rows), done in fits.items()
            if rows <= _GOAL_ROWS and not isinstance(done, str)
        ),
        default=0.0,
    )
    loss = _NEVER if isinstance(ours, str) else best - _auc(ours)
    cells = ("AUC below the best of all", count(_GOAL_ROWS), "-", "-", f"{loss:.4f}")
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
    about = _ABOUT.format(limit=limit, source=source, seeds=_SEEDS, repeated=f"{_GOAL_ROWS:,}")
    return Section("Training", about, (Table("", header, tuple(rows)),))
