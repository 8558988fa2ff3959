"""The curves, as SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.scaling.figures import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

# The same picture from the same numbers, byte for byte; text stays text.
mpl.rcParams.update(
    {
        "svg.hashsalt": "dynahugd",
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 9,
        "lines.marker": "o",
        "lines.markersize": 4,
    }
)
_COLOURS = ("#0b6e99", "#448361", "#d9730d", "#6940a5")


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None, "Creator": None}, bbox_inches="tight")


def _axes(figure: Figure, columns: int) -> Sequence[Axes]:
    return [figure.add_subplot(1, columns, number + 1) for number in range(columns)]


def _open_loads(figures: Figures, file: Path) -> None:
    lines = figures.table("Scale", "Loads open at once")
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = _axes(figure, 2)
    by_loads = sorted(
        (line.values["loads"], line.values["cpu"])
        for line in lines
        if line.values["calls"] == 10_000
    )
    left.plot(*zip(*((x, 100 * y) for x, y in by_loads), strict=True), color=_COLOURS[0])
    left.set(xscale="log", xlabel="loads open, 10,000 calls/s in all", ylabel="CPU, % of a core")
    by_calls = sorted(
        (line.values["calls"], line.values["cpu"]) for line in lines if line.values["loads"] == 10
    )
    right.plot(*zip(*((x, 100 * y) for x, y in by_calls), strict=True), color=_COLOURS[1])
    right.set(xscale="log", xlabel="system calls/s in 10 loads", ylabel="CPU, % of a core")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    _save(figure, file)


def _bursts(figures: Figures, file: Path) -> None:
    lines = sorted(figures.table("Scale", "Bursts of loads"), key=lambda line: line.values["rate"])
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = _axes(figure, 2)
    rates = [line.values["rate"] for line in lines]
    left.plot(rates, [1e6 * line.values["cpu"] for line in lines], color=_COLOURS[0])
    left.set(xscale="log", xlabel="loads/s of one process", ylabel="CPU of the daemon a load, us")
    right.plot(rates, [line.values["late"] for line in lines], color=_COLOURS[1])
    right.set(xscale="log", xlabel="loads/s of one process", ylabel="last one judged after, s")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    _save(figure, file)


def _training(figures: Figures, file: Path) -> None:
    lines = figures.table("Training")
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = _axes(figure, 2)
    methods = list(dict.fromkeys(line.cells[0] for line in lines))
    for method, colour in zip(methods, cycle(_COLOURS), strict=False):
        values = [line.values for line in lines if line.cells[0] == method]
        rows = [value["rows"] for value in values]
        left.plot(rows, [value["seconds"] for value in values], color=colour, label=method)
        right.plot(rows, [value["memory"] / 2**20 for value in values], color=colour, label=method)
    left.set(xscale="log", yscale="log", xlabel="rows", ylabel="time to fit, s")
    right.set(xscale="log", yscale="log", xlabel="rows", ylabel="memory, MiB")
    left.legend(frameon=False)
    _save(figure, file)


def draw(figures: Figures, folder: Path) -> None:
    """Write ``scaling-open-loads.svg``, ``scaling-bursts.svg``, ``scaling-training.svg``."""
    _open_loads(figures, folder / "scaling-open-loads.svg")
    _bursts(figures, folder / "scaling-bursts.svg")
    _training(figures, folder / "scaling-training.svg")
