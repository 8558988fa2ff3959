"""The table of load behaviours says what it does, and does what it says.

Behaviours that need libraries are performed by the tests that load them under the daemon, and by
``python -m tests.behaviours run all``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import pytest

from tests.behaviours import (
    BENIGN,
    MALICIOUS,
    TABLE,
    Behaviour,
    NotPerformed,
    lacking,
    make_files,
    perform,
)

STANDARD = [row for row in TABLE if not row.needs and not row.slow]


def named(name: str) -> Behaviour:
    return next(row for row in TABLE if row.name == name)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_names_are_unique() -> None:
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))


def test_the_table_is_broad() -> None:
    assert len(BENIGN) >= 15
    assert len(MALICIOUS) >= 20
    assert not any(row.malicious for row in BENIGN)
    assert all(row.malicious for row in MALICIOUS)


def test_every_row_says_in_one_line_what_it_shows() -> None:
    assert all(row.shows and "\n" not in row.shows for row in TABLE)


def test_malicious_rows_must_prove_their_payload() -> None:
    with pytest.raises(ValueError, match="prove"):
        dataclasses.replace(named("os_system"), fired=None)


@pytest.mark.parametrize("row", STANDARD, ids=lambda row: row.name)
def test_files_are_the_same_every_time(row: Behaviour, tmp_path: Path) -> None:
    first = make_files(row, tmp_path / "first")
    second = make_files(row, tmp_path / "second")
    assert first.relative_to(tmp_path / "first") == second.relative_to(tmp_path / "second")
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


@pytest.mark.parametrize("row", STANDARD, ids=lambda row: row.name)
def test_standard_library_behaviours_take_place(row: Behaviour, tmp_path: Path) -> None:
    done = perform(row, tmp_path)
    assert done.returncode == row.exits
    assert done.seconds < 5


def test_a_payload_that_does_not_fire_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.behaviours.performing._FIRE_WITHIN", 0.1)
    dud = dataclasses.replace(named("os_system"), loader="import sys\n")
    with pytest.raises(NotPerformed, match="no trace"):
        perform(dud, tmp_path)


def test_another_exit_status_is_an_error(tmp_path: Path) -> None:
    broken = dataclasses.replace(named("pickle_protocol_4"), loader="raise SystemExit(3)\n")
    with pytest.raises(NotPerformed, match="exit status 3"):
        perform(broken, tmp_path)


def test_a_load_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    endless = dataclasses.replace(named("pickle_protocol_4"), after=60.0)
    with pytest.raises(NotPerformed, match="still running"):
        perform(endless, tmp_path, timeout=0.5)


def test_a_folder_serves_once(tmp_path: Path) -> None:
    perform(named("pickle_protocol_4"), tmp_path)
    with pytest.raises(ValueError, match="not empty"):
        perform(named("pickle_protocol_4"), tmp_path)


def test_libraries_that_are_not_there_are_named() -> None:
    row = dataclasses.replace(named("pickle_protocol_4"), needs=("no_such_library",))
    assert lacking(row, sys.executable) == ("no_such_library",)
