"""Verdicts as text: a line for a person, an object for a program. Hostile text is escaped here."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from dynahugd.escape import escape, shorten
from dynahugd.outputs.clock import WallClock
from dynahugd.verdicts import Verdict, VerdictKind, words

__all__ = ["as_object", "as_text", "reasons_of", "safe", "summary"]

_MARK = {
    VerdictKind.BENIGN: "benign      ",
    VerdictKind.ANOMALOUS: "ANOMALOUS   ",
    VerdictKind.INCONCLUSIVE: "inconclusive",
}


def safe(text: str, limit: int = 4096) -> str:
    """Hostile text as part of a printable line, of at most so many characters."""
    return shorten(escape(text), limit)


def summary(verdict: Verdict) -> str:
    """Verdict, p-value, format, process and file on one line."""
    load = verdict.load
    name = safe(load.path) if load.path else "(no file)"
    note = f" ({verdict.note})" if verdict.note else ""
    return (
        f"{_MARK[verdict.kind]} p={verdict.score.p_value:.2g} {load.format:<12} "
        f"{safe(load.comm)}[{load.tgid}] {name}{note}"
    )


def reasons_of(verdict: Verdict, told: Container[str] = ()) -> list[str]:
    """A line for each reason of an anomaly, strongest first, with the record behind it.

    ``told``: features of the reasons that an earlier text gave already.
    """
    if verdict.kind is not VerdictKind.ANOMALOUS:
        return []
    evidence = {item.feature: safe(item.detail, 200) for item in verdict.evidence}
    return [
        words(reason) + (f": {evidence[reason.feature]}" if reason.feature in evidence else "")
        for reason in verdict.score.reasons
        if reason.feature not in told
    ]


def as_text(verdict: Verdict, clock: WallClock, told: Container[str] = ()) -> str:
    """The time and the summary; for an anomaly also the reasons, each on a line of its own."""
    time = f"{clock.at(verdict.time).astimezone():%H:%M:%S.%f}"[:-3]
    lines = [f"{time} {summary(verdict)}"]
    lines += [f"    {reason}" for reason in reasons_of(verdict, told)]
    return "\n".join(lines)


def as_object(verdict: Verdict, clock: WallClock) -> dict[str, Any]:
    """The object of the alert log and of ``--json``."""
    load, score = verdict.load, verdict.score
    return {
        "time": clock.iso(verdict.time),
        "stage": verdict.stage.value,
        "load_id": f"{load.id:016x}",
        "tgid": load.tgid,
        "tid": load.tid,
        "comm": safe(load.comm),
        "exe": safe(load.exe),
        "uid": load.uid,
        "cgroup": load.cgroup,
        "path": safe(load.path),
        "format": load.format,
        "verdict": verdict.kind.value,
        "p_value": score.p_value,
        "score": score.score,
        "cluster": safe(score.cluster),
        "reasons": [
            {
                "feature": reason.feature,
                "value": reason.value,
                "benign": [reason.low, reason.high],
                "benign_loads": reason.loads,
                "words": words(reason),
            }
            for reason in score.reasons
        ],
        "evidence": [
            {"time": clock.iso(item.time), "kind": item.kind, "detail": safe(item.detail)}
            for item in verdict.evidence
        ],
        "note": verdict.note,
    }
