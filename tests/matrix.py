"""The matrix of behaviours under a running daemon: each malicious kind alerts, no benign kind does.

    python -m tests.matrix --rounds 20 [--loader libbpf] [NAME...]

prints a table and exits 1 when a cell is wrong. ``tests/test_matrix.py`` runs it with three rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.behaviours import TABLE, Behaviour, perform
from tests.harness import RunningDaemon, Verdict, own_cgroup

__all__ = ["Outcome", "perform_under", "rounds_of"]


@dataclass(slots=True)
class Outcome:
    """What the daemon said about the rounds of one behaviour.

    Attributes
    ----------
    wrong : sentences about rounds whose verdict was not the right one.
    latencies : seconds from the first telling act in the kernel to the alert being read.
    """

    behaviour: Behaviour
    rounds: int = 0
    alerts: int = 0
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def _summary(verdict: Verdict) -> str:
    reasons = "; ".join(reason["words"] for reason in verdict["reasons"])
    return f"{verdict['format']} {verdict['path']} p={verdict['p_value']:.2g} {reasons}"


def perform_under(
    daemon: RunningDaemon, behaviour: Behaviour, folder: Path, python: str, cgroup: int | None
) -> Outcome:
    """Perform a behaviour once; verdicts on the control group's loads meanwhile are about it."""
    outcome = Outcome(behaviour, rounds=1)
    before = len(daemon.verdicts)
    # What an earlier load left running may still speak: only verdicts on later loads count.
    performed = perform(behaviour, folder, python=python, timeout=90)

    def said(stage: str) -> list[Verdict]:
        return [
            verdict
            for verdict in daemon.verdicts[before:]
            if verdict["stage"] == stage and cgroup in (None, verdict["cgroup"])
        ]

    if behaviour.malicious:
        try:
            daemon.wait(lambda: bool(said("alert")), 3, "alert")
        except AssertionError:
            ended = [_summary(verdict) for verdict in said("ended")]
            outcome.wrong.append(f"no alert; ended: {ended}")
            return outcome
    else:
        daemon.settle()
        for verdict in said("alert"):
            outcome.wrong.append(f"false alarm: {_summary(verdict)}")
        if behaviour.no_load and said("ended"):
            outcome.wrong.append(f"a load: {_summary(said('ended')[0])}")
        for verdict in said("ended"):
            if verdict["verdict"] == "inconclusive":
                outcome.wrong.append(f"inconclusive: {verdict['note']}")
    alerts = said("alert")
    outcome.alerts = bool(alerts)
    for verdict in alerts[:1]:
        if verdict["evidence"]:
            first = datetime.fromisoformat(verdict["evidence"][0]["time"]).timestamp()
            outcome.latencies.append(verdict["seen"] - first)
    if behaviour.malicious and performed.returncode == behaviour.exits:
        daemon.settle()
    return outcome


def rounds_of(
    daemon: RunningDaemon,
    behaviour: Behaviour,
    folder: Path,
    rounds: int,
    python: str,
    cgroup: int | None,
) -> Outcome:
    """Several rounds of one behaviour."""
    total = Outcome(behaviour)
    for number in range(rounds):
        place = folder / f"{behaviour.name}-{number}"
        one = perform_under(daemon, behaviour, place, python, cgroup)
        total.rounds += 1
        total.alerts += one.alerts
        total.wrong += one.wrong
        total.latencies += one.latencies
    return total


def _table(outcomes: Iterable[Outcome]) -> str:
    lines = [
        "| behaviour | expected | alerts | rounds | median ms | max ms |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        kind = outcome.behaviour
        expected = "alert" if kind.malicious else "no load" if kind.no_load else "benign"
        times = [1000 * value for value in outcome.latencies]
        shown = f"{statistics.median(times):.1f} | {max(times):.1f}" if times else "- | -"
        lines.append(
            f"| {kind.name} | {expected} | {outcome.alerts} | {outcome.rounds} | {shown} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--loader", default="libbpf")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--options", metavar="TEXT", help="more options for the daemon")
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as name, own_cgroup() as cgroup:
        folder = Path(name)
        options = ["--loader", arguments.loader, *(arguments.options or "").split()]
        with RunningDaemon(folder, *options) as daemon:
            for behaviour in TABLE:
                if arguments.names and behaviour.name not in arguments.names:
                    continue
                rounds = min(arguments.rounds, 3) if behaviour.slow else arguments.rounds
                outcome = rounds_of(daemon, behaviour, folder, rounds, arguments.python, cgroup)
                outcomes.append(outcome)
                state = "ok" if not outcome.wrong else "WRONG"
                print(f"{state:<6} {behaviour.name}", file=sys.stderr)
                for text in outcome.wrong:
                    print(f"       {text}", file=sys.stderr)
    print(_table(outcomes))
    every = [value for outcome in outcomes for value in outcome.latencies]
    if len(every) > 1:
        cuts = statistics.quantiles(every, n=100, method="inclusive")
        print(
            f"\ntime to alert: median {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms, "
            f"of {len(every)}"
        )
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
