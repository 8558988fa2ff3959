"""Verdicts: what is said about a load, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dynahugd.baseline import Reason, Score
from dynahugd.features.classes import describe
from dynahugd.loads import Act, Load

__all__ = ["Evidence", "Stage", "Verdict", "VerdictKind", "judge", "words"]


class VerdictKind(StrEnum):
    """The label ``verdict``."""

    BENIGN = "benign"
    ANOMALOUS = "anomalous"
    INCONCLUSIVE = "inconclusive"


class Stage(StrEnum):
    """When a verdict is given.

    ``alert`` as soon as a load is anomalous, once; ``ended`` at the end of its span; ``over`` when
    its descendants are gone too: the last word.
    """

    ALERT = "alert"
    ENDED = "ended"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A record behind a reason: CLOCK_MONOTONIC in ns, kind, and its text (hostile, unescaped)."""

    time: int
    feature: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said about a load.

    Attributes
    ----------
    time : CLOCK_MONOTONIC, ns.
    latency : seconds from the first act of the strongest reason to this verdict, if it has one.
    note : why it is inconclusive.
    """

    load: Load
    stage: Stage
    kind: VerdictKind
    time: int
    score: Score
    evidence: tuple[Evidence, ...]
    latency: float | None
    note: str


def judge(load: Load, score: Score, alpha: float) -> tuple[VerdictKind, str]:
    """The verdict for a score and, if it is inconclusive, why."""
    if score.p_value <= alpha:
        return VerdictKind.ANOMALOUS, ""
    if load.lost:
        return VerdictKind.INCONCLUSIVE, f"{load.lost} records of this load were lost"
    if load.cut:
        return VerdictKind.INCONCLUSIVE, load.cut
    return VerdictKind.BENIGN, ""


def evidence_for(reasons: tuple[Reason, ...], first: dict[str, Act]) -> tuple[Evidence, ...]:
    """The first record of each reason's column, in the order of the reasons: strongest first."""
    acts = [
        (reason.feature, first[reason.feature]) for reason in reasons if reason.feature in first
    ]
    return tuple(
        Evidence(act.time, feature, act.call or act.kind.name.lower(), describe(act))
        for feature, act in acts
    )


_VERBS = {
    "attempt": "tried to execute a program of class",
    "execute": "executed a program of class",
    "connect": "connected to an address of class",
    "bind": "bound a socket to an address of class",
    "send": "sent to an address of class",
    "read": "read a file of class",
    "seek": "looked for a file of class",
    "write": "wrote a file of class",
    "remove": "removed a file of class",
    "rename": "renamed a file to class",
    "link": "linked a file of class",
    "mode": "changed the mode of a file of class",
    "folder": "made a folder of class",
    "map": "made memory executable, of class",
    "birth": "created a",
    "call": "called",
    "calls": "called",
    "global": "named a global of class",
    "format": "has format",
}


def words(reason: Reason) -> str:
    """A reason as a sentence a person understands."""
    feature = reason.feature
    child = feature.startswith("child.")
    verb, _, kind = feature.removeprefix("child.").partition(".")
    what = f"{_VERBS.get(verb, verb)} {kind}" + (
        f" {reason.value} times" if reason.value > 1 else ""
    )
    who = "a child " if child else ""
    if reason.high == 0:
        return f"{who}{what}; none of {reason.loads} benign loads like it ever did"
    return (
        f"{who}{what}; benign loads like it {reason.low} to {reason.high} times "
        f"({reason.loads} loads)"
    )
