"""What the detector makes of the laboratory's recordings, as a page in Markdown.

    .venv/bin/python -m benchmarks.lab.report FOLDER > docs/bench-lab.md

For each environment: trained on the benign loads of all the others, how many of its benign loads
alert and how many of its malicious behaviours are caught; and trained on one half of all benign
loads, how many of the other half alert. Then, for that half, what each part of the detector is for.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.lab.environments import ENVIRONMENTS
from benchmarks.lab.record import KINDS
from dynahugd.baseline import Baseline
from dynahugd.baseline.model import common_globals
from dynahugd.baseline.training import NUMBERS, train
from dynahugd.features import Classifier, Row
from dynahugd.loads import Load
from dynahugd.pipeline import Rules, rows_of
from dynahugd.probes import syscalls
from dynahugd.recording import architecture, read

ALPHA = 0.001
_FOLDER = re.compile(r"/malicious-[^/]+/([^/]+)")

Keep = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Sample:
    """A recorded load: its globals, its rows, and the behaviour that it belongs to."""

    globals: set[tuple[str, str]]
    rows: tuple[Row, ...]
    behaviour: str = ""


@dataclass(slots=True)
class Recordings:
    """Both recordings of each environment, read anew for each set of known globals."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = [
            item.name
            for item in ENVIRONMENTS
            if all((self.folder / f"{item.name}-{kind}.parquet").exists() for kind in KINDS)
        ]

    def samples(self, name: str, kind: str, classifier: Classifier) -> list[Sample]:
        """The loads of a recording that lost nothing."""
        path = str(self.folder / f"{name}-{kind}.parquet")
        names = syscalls.names(architecture(path))
        found = []
        for load, rows in rows_of(read(path), names, classifier, Rules()):
            if not load.lost and (kind == "benign" or _behaviour(load)):
                found.append(Sample(load.globals(), tuple(rows), _behaviour(load)))
        return found


def _behaviour(load: Load) -> str:
    for place in (load.path, load.cwd):
        if match := _FOLDER.search(place):
            return match[1]
    return ""


def _kept(samples: Iterable[Sample], keep: Keep, whole: bool) -> Iterator[list[Row]]:
    for sample in samples:
        yield [
            replace(row, counts={name: n for name, n in row.counts.items() if keep(name)})
            for row in sample.rows
            if row.window == "whole" or not whole
        ]


def _alerts(baseline: Baseline, rows: Iterable[Row]) -> bool:
    return any(baseline.score(row, reasons=False).p_value <= ALPHA for row in rows)


@dataclass(frozen=True, slots=True)
class Caught:
    """How many benign loads alert, and which behaviours do."""

    alarms: int
    benign: int
    behaviours: dict[str, bool]

    @property
    def missed(self) -> list[str]:
        """Behaviours of which no load alerts."""
        return sorted(name for name, caught in self.behaviours.items() if not caught)


def judge(
    baseline: Baseline,
    benign: Sequence[Sample],
    malicious: Sequence[Sample],
    keep: Keep = lambda _: True,
    whole: bool = False,
) -> Caught:
    """Judge loads as the daemon would at their end."""
    alarms = sum(_alerts(baseline, rows) for rows in _kept(benign, keep, whole))
    behaviours: dict[str, bool] = {}
    for sample, rows in zip(malicious, _kept(malicious, keep, whole), strict=True):
        caught = behaviours.get(sample.behaviour, False) or _alerts(baseline, rows)
        behaviours[sample.behaviour] = caught
    return Caught(alarms, len(benign), behaviours)


def _read_all(
    recordings: Recordings, classifier: Classifier
) -> dict[tuple[str, str], list[Sample]]:
    return {
        (name, kind): recordings.samples(name, kind, classifier)
        for name in recordings.names
        for kind in KINDS
    }


def leave_one_out(
    recordings: Recordings, raw: dict[tuple[str, str], list[Sample]]
) -> dict[str, Caught]:
    """Each environment judged by a baseline of all the others."""
    results = {}
    for name in recordings.names:
        print(f"without {name}", file=sys.stderr)
        others = [other for other in recordings.names if other != name]
        known = common_globals(s.globals for other in others for s in raw[other, "benign"])
        read_anew = _read_all(recordings, Classifier(known))
        training = [list(s.rows) for other in others for s in read_anew[other, "benign"]]
        baseline = train(training, known, {})
        results[name] = judge(baseline, read_anew[name, "benign"], read_anew[name, "malicious"])
    return results


_ACTS = re.compile(r"^(calls|format|global)\.")
_NO_GLOBALS: Keep = lambda name: not name.startswith("global.")  # noqa: E731
_NO_ACTS: Keep = lambda name: _ACTS.match(name) is not None  # noqa: E731
_CALLS: Keep = lambda name: name.startswith(("calls.", "format."))  # noqa: E731
_ALL: Keep = lambda _: True  # noqa: E731

#: Name: which columns, whether the whole load alone, numbers of clusters.
ABLATIONS: dict[str, tuple[Keep, bool, Sequence[int]]] = {
    "all": (_ALL, False, NUMBERS),
    "no pickle globals": (_NO_GLOBALS, False, NUMBERS),
    "no acts (files, programs, peers)": (_NO_ACTS, False, NUMBERS),
    "counts of system calls alone": (_CALLS, False, NUMBERS),
    "no sliding window": (_ALL, True, NUMBERS),
    "one cluster": (_ALL, False, (1,)),
}


def halves(
    recordings: Recordings, raw: dict[tuple[str, str], list[Sample]]
) -> tuple[dict[str, Caught], dict[str, dict[str, Caught]]]:
    """Judged by a baseline of every other load: by environment, and that by ablation."""
    known = common_globals(
        sample.globals for name in recordings.names for sample in raw[name, "benign"][::2]
    )
    samples = _read_all(recordings, Classifier(known))
    training = [s for name in recordings.names for s in samples[name, "benign"][::2]]
    by_ablation = {}
    for ablation, (keep, whole, numbers) in ABLATIONS.items():
        print(ablation, file=sys.stderr)
        baseline = train(list(_kept(training, keep, whole)), known, {}, numbers)
        by_ablation[ablation] = {
            name: judge(
                baseline,
                samples[name, "benign"][1::2],
                samples[name, "malicious"],
                keep,
                whole,
            )
            for name in recordings.names
        }
    return by_ablation["all"], by_ablation


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.2f} %)"


def _environments(inside: dict[str, Caught], outside: dict[str, Caught]) -> list[str]:
    lines = [
        "| environment | differs in | false alarms, half of all known | false alarms, left out "
        "| caught, left out |",
        "|---|---|---|---|---|",
    ]
    for item in ENVIRONMENTS:
        if item.name not in inside:
            continue
        known, left = inside[item.name], outside[item.name]
        lines.append(
            f"| {item.name} | {item.differs} | {_share(known.alarms, known.benign)} "
            f"| {_share(left.alarms, left.benign)} "
            f"| {sum(left.behaviours.values())} of {len(left.behaviours)} |"
        )
    totals = [
        _share(sum(c.alarms for c in part.values()), sum(c.benign for c in part.values()))
        for part in (inside, outside)
    ]
    lines.append(f"| all | | {totals[0]} | {totals[1]} | |")
    return lines


def _ablations(by_ablation: dict[str, dict[str, Caught]]) -> list[str]:
    lines = ["| | false alarms | caught | missed somewhere |", "|---|---|---|---|"]
    for name, caught in by_ablation.items():
        found = sum(sum(c.behaviours.values()) for c in caught.values())
        every = sum(len(c.behaviours) for c in caught.values())
        missed = sorted({text for c in caught.values() for text in c.missed})
        shown = ", ".join(missed[:8]) + (f" and {len(missed) - 8} more" if len(missed) > 8 else "")
        alarms = _share(
            sum(c.alarms for c in caught.values()), sum(c.benign for c in caught.values())
        )
        lines.append(f"| {name} | {alarms} | {_share(found, every)} | {shown or 'none'} |")
    return lines


_ABOUT = """\
# The laboratory

`make bench-lab` writes this page: it performs the benign workload of the baseline and the
malicious behaviours of the tests in environments that differ as hosts do, under the real probe, and
judges the recordings by baselines trained on parts of them, at a p-value of 0.001.

"Left out": trained on the other environments alone, the way a baseline that comes with the program
meets a new host. "Half of all known": trained on every other benign load of all environments.

The detector's settings (kernel width, tail, variance of ordinary work) were chosen with the same
kinds of loads and behaviours at hand, in other recordings: the environments are new to it, the
kinds are not.
"""


def main() -> int:
    """Judge and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    recordings = Recordings(parser.parse_args().folder)
    if len(recordings.names) < 2:
        print("record two environments first: benchmarks.lab.record", file=sys.stderr)
        return 1
    raw = _read_all(recordings, Classifier())
    outside = leave_one_out(recordings, raw)
    inside, by_ablation = halves(recordings, raw)
    print(_ABOUT)
    print("\n".join(_environments(inside, outside)))
    missed = {name: caught.missed for name, caught in outside.items() if caught.missed}
    for name, behaviours in missed.items():
        print(f"\nMissed in {name}, left out: {', '.join(behaviours)}.")
    print("\n## What the parts are for\n")
    print("\n".join(_ablations(by_ablation)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
