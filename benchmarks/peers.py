"""Scanners of model files beside dynahugd, on the files of the laboratory and benign ones.

    sudo .venv/bin/python -m benchmarks.peers --scanners .peers/bin > docs/bench-peers.md

Each file is made anew, scanned by the current releases of the scanners in a network namespace of
their own (they have nobody to talk to), and loaded under the running daemon. A scanner's word is
its exit status, the one that a pipeline would go by.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.lab.catalogue import CATALOGUE
from tests.behaviours import BENIGN, Behaviour
from tests.behaviours.performing import make_files
from tests.harness import RunningDaemon, own_cgroup
from tests.matrix import perform_under

_ABOUT = """\
`make bench-peers` writes this page. Every malicious file's payload was seen to fire. A scanner
reads a file before it is loaded and can keep it from being loaded; dynahugd tells while it is
loaded, by what it does. `median s`: a scan of one file, process start and all; for dynahugd from
the first telling act to the alert. The benign files come from the hands that wrote the workload of
dynahugd's baseline: docs/bench-lab.md has its false alarms on other hosts.
"""
_TIMEOUT = 120.0
_MARKS = {"flagged": "x", "clean": "", "error": "error", "not scanned": "-"}


class Word(StrEnum):
    """What is said about a file."""

    FLAGGED = "flagged"
    CLEAN = "clean"
    ERROR = "error"
    UNSCANNED = "not scanned"


#: Exit status and output to a word.
Reading = Callable[[int, str], Word]


def _by_status(*words: Word) -> Reading:
    return lambda status, _: words[status] if status in range(len(words)) else Word.ERROR


def _picklescan(status: int, output: str) -> Word:
    if status == 0 and "Scanned files: 0" in output:
        return Word.UNSCANNED
    return _by_status(Word.CLEAN, Word.FLAGGED)(status, output)


def _critical(status: int, output: str) -> Word:
    try:
        issues = json.loads(output)["issues"]
    except (ValueError, KeyError):
        return Word.ERROR
    return Word.FLAGGED if any(i["severity"] == "critical" for i in issues) else Word.CLEAN


_TERNARY = _by_status(Word.CLEAN, Word.FLAGGED)
#: Name in the table: package, arguments before the file, how to read the answer.
SCANNERS: dict[str, tuple[str, tuple[str, ...], Reading]] = {
    "picklescan": ("picklescan", ("-p",), _picklescan),
    "picklescan --strict": ("picklescan", ("--strict", "-p"), _picklescan),
    "modelscan": (
        "modelscan",
        ("-p",),
        _by_status(Word.CLEAN, Word.FLAGGED, Word.ERROR, Word.UNSCANNED),
    ),
    "fickling": ("fickling", ("--check-safety",), _TERNARY),
    "modelaudit": ("modelaudit", ("scan", "--format", "json"), _TERNARY),
    "modelaudit, critical only": ("modelaudit", ("scan", "--format", "json"), _critical),
}
OURS = "dynahugd"


@dataclass(slots=True)
class Outcome:
    """Words about each file, and seconds that each scan took."""

    words: dict[tuple[str, str], Word] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def count(self, name: str, rows: list[Behaviour]) -> Counter[Word]:
        """How often a scanner said what about some files."""
        return Counter(self.words[name, row.name] for row in rows)


def scan(command: list[str], folder: Path) -> tuple[int, str, float]:
    """Run a scanner without a network: exit status, standard output, seconds."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    started = time.monotonic()
    try:
        done = subprocess.run(
            ["unshare", "--net", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return -1, "", _TIMEOUT
    return done.returncode, done.stdout, time.monotonic() - started


def _measure(rows: list[Behaviour], scanners: Path, folder: Path) -> Outcome:
    outcome = Outcome()
    with own_cgroup() as cgroup, RunningDaemon(folder) as daemon:
        for row in rows:
            print(row.name, file=sys.stderr)
            path = make_files(row, folder / f"{row.name}-scanned")
            for name, (program, arguments, read) in SCANNERS.items():
                status, output, seconds = scan(
                    [str(scanners / program), *arguments, str(path)], folder
                )
                outcome.words[name, row.name] = read(status, output)
                outcome.seconds.setdefault(name, []).append(seconds)
            done = perform_under(daemon, row, folder / f"{row.name}-loaded", sys.executable, cgroup)
            outcome.words[OURS, row.name] = Word.FLAGGED if done.alerts else Word.CLEAN
            outcome.seconds.setdefault(OURS, []).extend(done.latencies)
    return outcome


def _summary(outcome: Outcome, rows: list[Behaviour]) -> list[str]:
    malicious = [row for row in rows if row.malicious]
    benign = [row for row in rows if not row.malicious]
    lines = [
        f"| | {len(malicious)} malicious: flagged | clean | error | not scanned "
        f"| {len(benign)} benign: flagged | clean | error | not scanned | median s |",
        "|---|" + "---|" * 9,
    ]
    for name in (*SCANNERS, OURS):
        cells = []
        for part in (malicious, benign):
            counted = outcome.count(name, part)
            cells += [f"{100 * counted[word] / len(part):.0f} %" for word in Word]
        seconds = statistics.median(outcome.seconds[name])
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.2g} |")
    return lines


def _details(outcome: Outcome, rows: list[Behaviour]) -> list[str]:
    names = (*SCANNERS, OURS)
    lines = [f"| file | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for row in rows:
        marks = " | ".join(_MARKS[outcome.words[name, row.name]] for name in names)
        lines.append(f"| {row.name} | {marks} |")
    return lines


def _versions(scanners: Path) -> str:
    found = {
        item.name: item.version
        for place in scanners.parent.glob("lib/python3*/site-packages")
        for item in distributions(path=[str(place)])
    }
    packages = dict.fromkeys(package for package, _, _ in SCANNERS.values())
    return ", ".join(f"{package} {found[package]}" for package in packages)


def main() -> int:
    """Measure and print a page in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scanners", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="behaviours (all)")
    arguments = parser.parse_args()
    if not (arguments.scanners / "picklescan").exists():
        print(f"no scanners in {arguments.scanners}: run 'make bench-peers'", file=sys.stderr)
        return 1
    rows = [
        row
        for row in (*BENIGN, *CATALOGUE)
        if not row.no_load and (not arguments.only or row.name in arguments.only)
    ]
    with tempfile.TemporaryDirectory() as folder:
        outcome = _measure(rows, arguments.scanners.absolute(), Path(folder))
    malicious = [row for row in rows if row.malicious]
    beaten = [
        row.name
        for row in malicious
        if outcome.words[OURS, row.name] is not Word.FLAGGED
        and any(outcome.words[name, row.name] is Word.FLAGGED for name in SCANNERS)
    ]
    print("# Scanners beside dynahugd\n")
    print(_ABOUT)
    print(f"{_versions(arguments.scanners)}; x flagged, - not scanned.\n")
    print("\n".join(_summary(outcome, rows)))
    print(f"\nFlagged by a scanner and missed by dynahugd: {', '.join(beaten) or 'none'}.")
    print("\n## Malicious files\n")
    print("\n".join(_details(outcome, malicious)))
    print("\n## Benign files\n")
    print("\n".join(_details(outcome, [row for row in rows if not row.malicious])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
