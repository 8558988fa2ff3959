"""What the detector makes of the laboratory's recordings, as a page in Markdown.

    .venv/bin/python -m benchmarks.lab.report FOLDER > docs/bench-lab.md

For each environment: trained on the benign loads of all the others, how many of its benign loads
alert and how many of its malicious behaviours are caught, before and after learning from some of
its loads; and trained on one half of all benign loads, how many of the other half alert. Then, for
that half, what each part of the detector is for.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from unittest import mock

from benchmarks.lab.catalogue import FAMILIES
from benchmarks.lab.environments import ENVIRONMENTS
from benchmarks.lab.record import KINDS
from dynahugd.baseline import Baseline
from dynahugd.baseline.learning import Learner, extend
from dynahugd.baseline.model import common_globals
from dynahugd.baseline.training import NUMBERS, train
from dynahugd.features import Classifier, Row
from dynahugd.loads import Load
from dynahugd.outputs.tally import FAR
from dynahugd.pipeline import Rules, rows_of
from dynahugd.probes import syscalls
from dynahugd.probes.layout import Bank, Kind
from dynahugd.recording import architecture, read

ALPHA = 0.001
#: Loads of an environment that are learned from.
LEARNED = 200
_FOLDER = re.compile(r"/malicious-[^/]+/([^/]+)")

Keep = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Sample:
    """A recorded load, its rows, and the behaviour that it belongs to."""

    load: Load
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

    def samples(
        self, name: str, kind: str, classifier: Classifier, window: float = 1.0
    ) -> list[Sample]:
        """The loads of a recording that lost nothing; of behaviours that took place."""
        path = str(self.folder / f"{name}-{kind}.parquet")
        absent = (self.folder / f"{name}-absent.txt").read_text().split()
        names = syscalls.names(architecture(path))
        found = []
        for load, rows in rows_of(read(path), names, classifier, Rules(window=window)):
            behaviour = _behaviour(load)
            malicious = behaviour and behaviour not in absent
            if not load.lost and (kind == "benign" or malicious):
                # What is not needed any more takes more room than all else.
                load.acts = [act for act in load.acts if act.kind is Kind.GLOBAL]
                load.counters = load.counters[:, :0].copy()
                found.append(Sample(load, tuple(rows), behaviour))
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


#: Whether a row is told of.
Alerts = Callable[[Baseline, Row], bool]


def by_p_value(baseline: Baseline, row: Row) -> bool:
    """As the daemon does."""
    return baseline.score(row, reasons=False).p_value <= ALPHA


def by_boundary(baseline: Baseline, row: Row) -> bool:
    """As a one-class SVM does by itself: what lies outside is an anomaly."""
    return baseline.score(row, reasons=False).score > 0


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
    alerts: Alerts = by_p_value,
) -> Caught:
    """Judge loads as the daemon would at their end."""
    alarms = sum(any(alerts(baseline, r) for r in rows) for rows in _kept(benign, keep, whole))
    behaviours: dict[str, bool] = {}
    for sample, rows in zip(malicious, _kept(malicious, keep, whole), strict=True):
        caught = behaviours.get(sample.behaviour, False) or any(alerts(baseline, r) for r in rows)
        behaviours[sample.behaviour] = caught
    return Caught(alarms, len(benign), behaviours)


Samples = dict[tuple[str, str], list[Sample]]


def _read_all(recordings: Recordings, classifier: Classifier, window: float = 1.0) -> Samples:
    return {
        (name, kind): recordings.samples(name, kind, classifier, window)
        for name in recordings.names
        for kind in KINDS
    }


@dataclass(frozen=True, slots=True)
class Learned:
    """What learning from some of an environment's loads changes for the others.

    Attributes
    ----------
    before, after : judged without and with it; the same benign loads.
    far_before, far_after : how many of these are far from every cluster (p of at most 0.01).
    """

    before: Caught
    after: Caught
    far_before: int
    far_after: int


def _far(baseline: Baseline, samples: Sequence[Sample]) -> int:
    return sum(
        min(baseline.score(row, reasons=False).p_value for row in sample.rows) <= FAR
        for sample in samples
    )


def learn(
    baseline: Baseline, benign: Sequence[Sample], malicious: Sequence[Sample], before: Caught
) -> Learned:
    """Learn from so many loads, those of some processes, and judge the others."""
    by_process: dict[int, list[Sample]] = {}
    for sample in benign:
        by_process.setdefault(sample.load.tgid, []).append(sample)
    processes = list(by_process.values())
    Random(0).shuffle(processes)
    learner = Learner(baseline)
    while processes and learner.taken < LEARNED:
        for sample in processes.pop():
            learner.take(sample.load, sample.rows)
    learned = extend(baseline, learner.lessons, {})
    rest = [sample for samples in processes for sample in samples]
    return Learned(
        replace(judge(baseline, rest, ()), behaviours=before.behaviours),
        judge(learned, rest, malicious),
        _far(baseline, rest),
        _far(learned, rest),
    )


def leave_one_out(
    recordings: Recordings, raw: Samples
) -> tuple[dict[str, Caught], dict[str, Learned]]:
    """Each environment judged by a baseline of all the others, before and after learning."""
    results, learned = {}, {}
    for name in recordings.names:
        print(f"without {name}", file=sys.stderr)
        others = [other for other in recordings.names if other != name]
        known = common_globals(s.load.globals() for other in others for s in raw[other, "benign"])
        read_anew = _read_all(recordings, Classifier(known))
        training = [list(s.rows) for other in others for s in read_anew[other, "benign"]]
        baseline = train(training, known, {})
        benign, malicious = (read_anew[name, kind] for kind in KINDS)
        results[name] = judge(baseline, benign, malicious)
        learned[name] = learn(baseline, benign, malicious, results[name])
    return results, learned


_ACTS = re.compile(r"^(calls|format|global)\.")
_NO_GLOBALS: Keep = lambda name: not name.startswith("global.")  # noqa: E731
_NO_ACTS: Keep = lambda name: _ACTS.match(name) is not None  # noqa: E731
_CALLS: Keep = lambda name: name.startswith(("calls.", "format."))  # noqa: E731
_ALL: Keep = lambda _: True  # noqa: E731


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is left of the detector.

    Attributes
    ----------
    keep : columns.
    window : seconds of the sliding window; 0: the whole load alone.
    clusters : numbers to choose from.
    brackets : whether what happens outside of the unpickler is told from what happens within.
    """

    keep: Keep = _ALL
    window: float = 1.0
    clusters: Sequence[int] = NUMBERS
    alerts: Alerts = by_p_value
    brackets: bool = True


ABLATIONS = {
    "all": Ablation(),
    "no pickle globals": Ablation(_NO_GLOBALS),
    "no acts (files, programs, peers)": Ablation(_NO_ACTS),
    "counts of system calls alone": Ablation(_CALLS),
    "all that the thread does while the file is open": Ablation(brackets=False),
    "no sliding window": Ablation(window=0),
    "a window of 5 s": Ablation(window=5),
    "one cluster": Ablation(clusters=(1,)),
    "no calibration (outside of the SVM's boundary)": Ablation(alerts=by_boundary),
}


def _without_brackets() -> AbstractContextManager[object]:
    """Hold everything against a load that its thread does while the file is open."""
    return mock.patch.multiple(
        Load,
        holds=lambda load, act: True,
        calls=lambda load: load.counters[Bank.WITHIN] + load.counters[Bank.OUTSIDE],
    )


def halves(recordings: Recordings, raw: Samples) -> dict[str, dict[str, Caught]]:
    """Judged by a baseline of every other load: by ablation and environment."""
    known = common_globals(
        sample.load.globals() for name in recordings.names for sample in raw[name, "benign"][::2]
    )
    readings: dict[tuple[float, bool], Samples] = {}
    results = {}
    for name, ablation in ABLATIONS.items():
        print(name, file=sys.stderr)
        reading = ablation.window or 1.0, ablation.brackets
        if reading not in readings:
            with nullcontext() if ablation.brackets else _without_brackets():
                readings[reading] = _read_all(recordings, Classifier(known), reading[0])
        samples, whole = readings[reading], not ablation.window
        training = [s for name in recordings.names for s in samples[name, "benign"][::2]]
        rows = list(_kept(training, ablation.keep, whole))
        baseline = train(rows, known, {}, ablation.clusters)
        results[name] = {
            environment: judge(
                baseline,
                samples[environment, "benign"][1::2],
                samples[environment, "malicious"],
                ablation.keep,
                whole,
                ablation.alerts,
            )
            for environment in recordings.names
        }
    return results


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.2f} %)"


def _caught(caught: Caught) -> str:
    return f"{sum(caught.behaviours.values())} of {len(caught.behaviours)}"


def _environments(
    inside: dict[str, Caught], outside: dict[str, Caught], learned: dict[str, Learned]
) -> Iterator[str]:
    yield (
        "| environment | differs in | half of all known | left out | caught, left out "
        f"| rest, before learning | rest, after {LEARNED} loads | caught, after |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    total: Counter[str] = Counter()
    for item in ENVIRONMENTS:
        if item.name not in inside:
            continue
        known, left, after = inside[item.name], outside[item.name], learned[item.name]
        parts = {"known": known, "left": left, "before": after.before, "after": after.after}
        for part, caught in parts.items():
            total[part] += caught.alarms
            total[f"{part} benign"] += caught.benign
        shares = [_share(caught.alarms, caught.benign) for caught in parts.values()]
        yield (
            f"| {item.name} | {item.differs} | {shares[0]} | {shares[1]} | {_caught(left)} "
            f"| {shares[2]} | {shares[3]} | {_caught(after.after)} |"
        )
    shares = [_share(total[p], total[f"{p} benign"]) for p in ("known", "left", "before", "after")]
    yield f"| all | | {shares[0]} | {shares[1]} | | {shares[2]} | {shares[3]} | |"


def _drift(learned: dict[str, Learned]) -> Iterator[str]:
    yield "| environment | far before | far after |"
    yield "|---|---|---|"
    for name, one in learned.items():
        benign = one.before.benign
        yield f"| {name} | {_share(one.far_before, benign)} | {_share(one.far_after, benign)} |"


def _ablations(by_ablation: dict[str, dict[str, Caught]]) -> Iterator[str]:
    yield "| | false alarms | caught | missed somewhere |"
    yield "|---|---|---|---|"
    for name, caught in by_ablation.items():
        found = sum(sum(c.behaviours.values()) for c in caught.values())
        every = sum(len(c.behaviours) for c in caught.values())
        missed = sorted({text for c in caught.values() for text in c.missed})
        shown = ", ".join(missed[:8]) + (f" and {len(missed) - 8} more" if len(missed) > 8 else "")
        alarms = _share(
            sum(c.alarms for c in caught.values()), sum(c.benign for c in caught.values())
        )
        yield f"| {name} | {alarms} | {_share(found, every)} | {shown or 'none'} |"


def _behaviours(outside: dict[str, Caught]) -> Iterator[str]:
    """Each behaviour: in how many of the environments that can perform it, it is caught."""
    yield "| family | behaviour | what shows | caught |"
    yield "|---|---|---|---|"
    for family, rows in FAMILIES.items():
        for row in rows:
            seen = [c.behaviours[row.name] for c in outside.values() if row.name in c.behaviours]
            yield f"| {family} | {row.name} | {row.shows} | {sum(seen)} of {len(seen)} |"


_ABOUT = """\
# The laboratory

`make bench-lab` writes this page: it performs the benign workload of the baseline and a catalogue
of malicious behaviours in environments that differ as hosts do, under the real probe, and judges
the recordings by baselines trained on parts of them, at a p-value of 0.001. Numbers are false
alarms of benign loads, and behaviours caught.

"Half of all known": trained on every other benign load of all environments. "Left out": trained on
the other environments alone, the way a baseline that comes with the program meets a new host.
"Rest": the same, for the loads that are left when 200 loads of the environment have been learned
from, before and after that.

The detector's settings (kernel width, tail, variance of ordinary work) were chosen with the same
kinds of loads and some of the behaviours at hand, in other recordings: the environments are new to
it, the kinds are not.
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
    outside, learned = leave_one_out(recordings, raw)
    by_ablation = halves(recordings, raw)
    print(_ABOUT)
    print("\n".join(_environments(by_ablation["all"], outside, learned)))
    for title, caught in (
        ("left out", outside),
        ("after learning", {name: one.after for name, one in learned.items()}),
    ):
        for name, one in caught.items():
            if one.missed:
                print(f"\nMissed in {name}, {title}: {', '.join(one.missed)}.")
    print(f"\n## Loads far from every cluster (p of at most {FAR:g})\n")
    print("\n".join(_drift(learned)))
    print("\n## What the parts are for\n")
    print(
        "Of the half of all loads that is not known; what the whole process does before and after"
    )
    print("its load is not in the recordings.\n")
    print("\n".join(_ablations(by_ablation)))
    print("\n## Every behaviour, in the environments left out\n")
    print("\n".join(_behaviours(outside)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
