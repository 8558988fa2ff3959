"""``python -m tests.behaviours list`` and ``run NAME [--rounds N]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import BENIGN, MALICIOUS, TABLE, Behaviour, NotPerformed, lacking, perform

_GROUPS = {"all": TABLE, "benign": BENIGN, "malicious": MALICIOUS}


def _chosen(names: Sequence[str]) -> list[Behaviour]:
    by_name = {behaviour.name: (behaviour,) for behaviour in TABLE}
    return [row for name in names for row in (_GROUPS.get(name) or by_name[name])]


def _list() -> None:
    for row in TABLE:
        kind = "malicious" if row.malicious else "benign"
        marks = [*row.needs, *(mark for mark in ("slow", "no_load") if getattr(row, mark))]
        print(f"{row.name:32} {kind:10} {row.shows}" + (f" [{', '.join(marks)}]" if marks else ""))


def _run(rows: Sequence[Behaviour], rounds: int, python: str, timeout: float) -> int:
    failures = 0
    for row in rows:
        missing = lacking(row, python)
        if missing:
            print(f"{row.name:32} skipped: needs {', '.join(missing)}", flush=True)
            continue
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="behaviour-") as folder:
                try:
                    done = perform(row, Path(folder), python, timeout=timeout)
                except NotPerformed as error:
                    failures += 1
                    print(f"{row.name:32} FAILED  {error}", flush=True)
                else:
                    print(f"{row.name:32} pid {done.pid:8} {done.seconds:7.2f} s", flush=True)
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1: a behaviour did not take place)."""
    parser = argparse.ArgumentParser(prog="python -m tests.behaviours", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the table")
    run = commands.add_parser("run", help="make files and load them")
    names = [*_GROUPS, *(behaviour.name for behaviour in TABLE)]
    run.add_argument("names", nargs="+", metavar="NAME", choices=names)
    run.add_argument("--rounds", type=int, default=1, metavar="N")
    run.add_argument("--python", default=sys.executable, help="interpreter that loads")
    run.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        _list()
        return 0
    return 1 if _run(_chosen(chosen.names), chosen.rounds, chosen.python, chosen.timeout) else 0


if __name__ == "__main__":
    sys.exit(main())
