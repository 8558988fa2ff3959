"""Verdicts as text: a line for a person, an object for a program. Hostile text is escaped here."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from dynahugd.escape import escape, shorten
from dynahugd.outputs.clock import WallClock
from dynahugd.verdicts import Verdict, VerdictKind, words

__all__ = ["as_object", "as_text"]

_MARK = {
    VerdictKind.BENIGN: "benign      ",
    VerdictKind.ANOMALOUS: "ANOMALOUS   ",
    VerdictKind.INCONCLUSIVE: "inconclusive",
}


def _safe(text: str, limit: int = 4096) -> str:
    return shorten(escape(text), limit)


def as_text(verdict: Verdict, clock: WallClock, told: Container[str] = ()) -> str:
    """One line: time, verdict, p-value, format, process, file; for an anomaly also the reasons.

    ``told``: features of the reasons that an earlier text gave already.
    """
    load = verdict.load
    name = _safe(load.path) if load.path else "(no file)"
    lines = [
        f"{clock.at(verdict.time).astimezone():%H:%M:%S.%f}"[:-3]
        + f" {_MARK[verdict.kind]} p={verdict.score.p_value:.2g}"
        f" {load.format:<12} {_safe(load.comm)}[{load.tgid}] {name}"
    ]
    if verdict.note:
        lines[0] += f" ({verdict.note})"
    if verdict.kind is VerdictKind.ANOMALOUS:
        evidence = {item.feature: item for item in verdict.evidence}
        for reason in verdict.score.reasons:
            if reason.feature in told:
                continue
            item = evidence.get(reason.feature)
            detail = f": {_safe(item.detail, 200)}" if item else ""
            lines.append(f"    {words(reason)}{detail}")
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
        "comm": _safe(load.comm),
        "exe": _safe(load.exe),
        "uid": load.uid,
        "cgroup": load.cgroup,
        "path": _safe(load.path),
        "format": load.format,
        "verdict": verdict.kind.value,
        "p_value": score.p_value,
        "score": score.score,
        "cluster": _safe(score.cluster),
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
            {"time": clock.iso(item.time), "kind": item.kind, "detail": _safe(item.detail)}
            for item in verdict.evidence
        ],
        "note": verdict.note,
    }
