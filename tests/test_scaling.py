"""The page on scaling: drawn and computed from measured figures, and from a daemon's outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def row(section: str, table: str, *cells: str, **values: float) -> dict[str, Any]:
    """A row as ``benchmarks.cost --figures`` writes it."""
    return {"section": section, "table": table, "cells": cells, "values": values}


ROWS = [
    *(
        row("Scale", "Loads open at once", str(n), loads=n, calls=10_000, cpu=n / 1e4)
        for n in (1, 10)
    ),
    row("Scale", "Bursts of loads", "100", rate=100, cpu=4e-4, late=0.3, wrong=0),
    row("Scale", "Bursts of loads", "1 k", rate=1_000, cpu=1e-4, late=0.3, wrong=0),
    row("Scale", "Bursts of loads", "9 k", rate=9_000, cpu=5e-5, late=9, wrong=0.1),
    row("Training", "", "ours", "1 k", rows=1_000, seconds=1, memory=2**27),
    row("Training", "", "ours", "10 k", rows=10_000, seconds=5, memory=2**28),
    row("The rest of the host", "", "getppid", "loads, daemon", more=25e-9),
    row("The rest of the host", "", "getppid", "daemon, idle ML process", more=8e-9),
    row("A load", "The load itself", "torch.load, 100 MB", nothing=0.05),
    row("A load", "The load itself", "torch.load, 20 KB", nothing=0.0005),
]


def scaling(folder: Path, rows: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Write the page and its pictures from some rows."""
    figures = folder / "figures.json"
    figures.write_text(json.dumps({"machine": "a machine", "rows": rows}))
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", str(figures), str(folder)],
        capture_output=True,
        text=True,
    )


@pytest.mark.ebpf
def test_the_page_computes_from_the_figures_and_shows_the_curves(tmp_path: Path) -> None:
    done = scaling(tmp_path, ROWS)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    # A rate at which something was lost is none that the daemon can follow.
    assert "400 us each at 100 loads/s, 100 us at 1.00 k" in text
    assert "8.00 ns a call while nothing loads and 25.0 ns while something does" in text
    assert "(50.0 ms each, 160 loads/s in all) take 6.4 % of one" in text
    assert "(500 us each, 16.0 k loads/s in all) are more than that" in text
    assert "| 1,000 | 1 | 10,000 | 7,000 |" in text
    pictures = [line.split("(")[1] for line in done.stdout.splitlines() if line.startswith("![")]
    assert len(pictures) == 3
    for picture in pictures:
        assert "<svg" in (tmp_path / picture.rstrip(")")).read_text()


@pytest.mark.ebpf
def test_the_same_figures_give_the_same_pictures(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        assert scaling(tmp_path, ROWS).returncode == 0
        drawn.append([file.read_bytes() for file in sorted(tmp_path.glob("*.svg"))])
    assert drawn[0] == drawn[1]


@pytest.mark.ebpf
def test_what_was_not_measured_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = scaling(tmp_path, [item for item in ROWS if item["section"] != "Scale"])
    assert done.returncode == 1
    assert done.stderr == (
        "benchmarks.scaling: 'Scale' was left out of the figures: measure all with 'make bench'\n"
    )


@pytest.mark.parametrize("content", [b"", b"[]", b'{"machine": 1}', os.urandom(16)])
def test_a_file_without_figures_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "figures.json"
    file.write_bytes(content)
    command = [sys.executable, "-m", "benchmarks.scaling", str(file), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"benchmarks.scaling: {file} has no figures")
    assert done.stderr.endswith("write it with 'make bench'\n")
    assert done.stderr.count("\n") == 1
