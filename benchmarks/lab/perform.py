"""Performs the loads of one environment: ``python -m benchmarks.lab.perform NAME KIND``.

KIND is ``benign`` (the workload of the baseline) or ``malicious`` (the catalogue of behaviours,
each in a folder of its name). Run inside what the environment asks for, under ``dynahugd record``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random

from benchmarks.baseline.workload import Workload, scratch
from benchmarks.lab.catalogue import CATALOGUE
from benchmarks.lab.environments import ENVIRONMENTS, Environment
from tests.behaviours import Behaviour, NotPerformed, lacking, perform

#: What a line begins with that names a behaviour whose effect was not seen.
ABSENT = "did not take place: "
_TIMEOUT = 120.0


def benign(environment: Environment, scale: float, seed: int) -> int:
    """The workload; the number of loads."""
    with ExitStack() as stack:
        roots = scratch(stack)
        workload = Workload(environment.kinds, Random(seed), scale, roots, environment.common)
        workload.perform((os.cpu_count() or 1) + 1)
        return workload.tally.loads.total()


def malicious(environment: Environment) -> tuple[int, list[str]]:
    """Every behaviour that this environment can show; how many, and what did not take place."""
    failed = []

    def attempt(row: Behaviour, folder: Path) -> None:
        try:
            perform(
                row,
                folder / row.name,
                python=environment.python,
                env=environment.common.environment,
                timeout=_TIMEOUT,
            )
        except NotPerformed as error:
            failed.append(str(error).splitlines()[0])

    rows = [row for row in CATALOGUE if not lacking(row, environment.python)]
    with (
        tempfile.TemporaryDirectory(prefix="malicious-") as folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        list(pool.map(attempt, rows, [Path(folder)] * len(rows)))
    return len(rows) - len(failed), failed


def main() -> int:
    """Perform, and say how much."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=[item.name for item in ENVIRONMENTS])
    parser.add_argument("kind", choices=("benign", "malicious"))
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    environment = next(item for item in ENVIRONMENTS if item.name == arguments.name)
    if arguments.kind == "benign":
        print(f"{benign(environment, arguments.scale, arguments.seed)} benign loads")
        return 0
    done, failed = malicious(environment)
    print(f"{done} malicious loads")
    for text in failed:
        print(f"{ABSENT}{text}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
