"""The laboratory's catalogue of malicious behaviours: complete, and each does what it says."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.lab.catalogue import CATALOGUE, FAMILIES
from tests.behaviours import MALICIOUS, Behaviour, lacking, perform

OWN = [row for row in CATALOGUE if row not in MALICIOUS]


def test_names_are_unique_and_every_behaviour_has_a_family() -> None:
    names = Counter(row.name for row in CATALOGUE)
    assert set(names.values()) == {1}
    assert {row.name for row in MALICIOUS} < set(names)
    assert len(FAMILIES) == 8
    assert all(len(rows) >= 8 for rows in FAMILIES.values())


def test_all_are_malicious_and_say_in_one_line_what_shows() -> None:
    assert all(row.malicious and row.shows and "\n" not in row.shows for row in CATALOGUE)


@pytest.mark.parametrize(
    "row", [row for row in OWN if not row.needs and not row.slow], ids=lambda row: row.name
)
def test_a_behaviour_of_the_standard_library_takes_place(row: Behaviour, tmp_path: Path) -> None:
    done = perform(row, tmp_path)
    assert done.returncode == row.exits
    assert done.seconds < 10


@pytest.mark.parametrize("row", [row for row in OWN if row.needs], ids=lambda row: row.name)
def test_what_a_behaviour_needs_is_what_the_tests_install(row: Behaviour) -> None:
    assert not lacking(row, sys.executable)
