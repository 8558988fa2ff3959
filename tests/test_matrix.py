"""Every malicious behaviour alerts and no benign one does, three rounds under each loader."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviours import BENIGN, MALICIOUS
from tests.conftest import LOADERS

pytestmark = [pytest.mark.ebpf, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The matrix under each loader, side by side: control groups tell their loads apart."""
    folder = tmp_path_factory.mktemp("matrix")
    started = {}
    for loader in LOADERS:
        with (folder / loader).open("wb") as output:
            started[loader] = subprocess.Popen(
                [sys.executable, "-m", "tests.matrix", "--rounds", "3", "--loader", loader],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started[loader].output = folder / loader  # type: ignore[attr-defined]
    yield started
    for process in started.values():
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("loader", LOADERS)
def test_every_verdict_of_the_matrix_is_right(
    loader: str, runs: dict[str, subprocess.Popen[bytes]]
) -> None:
    status = runs[loader].wait(800)
    output: Path = runs[loader].output  # type: ignore[attr-defined]
    print(output.read_text())
    assert status == 0


def test_the_matrix_is_large_enough() -> None:
    assert len(BENIGN) >= 15
    assert len(MALICIOUS) >= 20
