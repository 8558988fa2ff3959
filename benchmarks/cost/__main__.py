"""What the daemon costs, as a page in Markdown.

    sudo .venv/bin/python -m benchmarks.cost [--only NAME...] [--quick] > docs/benchmarks.md

Progress goes to standard error. ``--figures FILE`` gets what ``benchmarks.scaling`` draws.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.cost import (
    alerts,
    box,
    interpreter,
    kernel,
    learning,
    load,
    reader,
    resident,
    scale,
)
from benchmarks.cost.conditions import progress
from benchmarks.cost.figures import Section
from benchmarks.cost.level import Level
from benchmarks.cost.machine import describe, watched_already

#: What measures a part, by the part's name; files go below the folder.
_PARTS: dict[str, Callable[[Level, Path], Section]] = {
    "load": load.measure,
    "interpreter": interpreter.measure,
    "kernel": kernel.measure,
    "reader": reader.measure,
    "daemon": resident.measure,
    "alerts": alerts.measure,
    "scale": scale.measure,
    "training": learning.measure,
}
_BOX = "box"
NAMES = (_BOX, *_PARTS)

_ABOUT = """\
# What watching costs

`make bench` writes this page: `python -m benchmarks.cost`, {level}, on {date}. Conditions that
are compared take turns, round by round and in alternating order, so that what drifts meets all
alike. A "k" is 1,000; times are medians.

{machine}.
"""


def _wanted(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--quick", dest="level", action="store_const", const=Level.QUICK)
    parser.add_argument("--tiny", dest="level", action="store_const", const=Level.TINY)
    parser.add_argument("--figures", type=Path, metavar="FILE")
    # What a shell has measured in place of this program, which was an ML process itself.
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(level=Level.FULL)
    return parser.parse_args(arguments)


def _sections(names: Iterable[str], level: Level, measured: Path | None) -> Iterator[Section]:
    if measured is not None:
        try:
            yield box.measure(measured)
        finally:
            shutil.rmtree(measured)
    for name, measure in _PARTS.items():
        if name in names:
            progress(f"{name}:")
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    yield measure(level, Path(folder))
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    progress(f"  failed: {error}")
                    yield Section(f"{name}: not measured", str(error), ())
            progress(f"  {time.monotonic() - begun:.0f} s")


def _summary(sections: Sequence[Section]) -> Iterator[str]:
    rows = [row for section in sections for table in section.tables for row in table.rows]
    goals = [row.goal for row in rows if row.goal]
    if not goals:
        return
    yield f"{sum(goal.met for goal in goals)} of {len(goals)} goals are met. Missed:\n"
    for section in sections:
        for row in (row for table in section.tables for row in table.rows):
            if row.goal and not row.goal.met:
                what = ", ".join(cell for cell in row.cells[:2] if cell)
                yield f"- {section.title}: {what}: {row.goal.shown} ({row.goal.text})"
    yield ""


def _write_figures(sections: Sequence[Section], file: Path) -> None:
    rows = [
        {"section": section.title, "table": table.title, "cells": row.cells, "values": row.values}
        for section in sections
        for table in section.tables
        for row in table.rows
        if row.values
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    wanted = _wanted(arguments)
    if _BOX in wanted.only and wanted.measured is None:
        folder = tempfile.mkdtemp()
        progress(f"{_BOX}:")
        again = [sys.executable, "-m", "benchmarks.cost", *arguments, "--measured", folder]
        box.become(wanted.level, Path(folder), again)
    about = _ABOUT.format(
        level=f"{wanted.level.value} size",
        date=time.strftime("%Y-%m-%d"),
        machine=describe(),
    )
    disturbed = watched_already()
    sections = list(_sections(wanted.only, wanted.level, wanted.measured))
    print(about)
    if disturbed:
        print('**Another dynahugd watched this host meanwhile: "nothing" was not nothing.**\n')
    if wanted.figures is not None:
        _write_figures(sections, wanted.figures)
    for line in _summary(sections):
        print(line)
    for section in sections:
        for line in section.lines():
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
