"""The alerts that are active, by format, and what Alertmanager is told of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.text import reasons_of, safe
from dynahugd.verdicts import Stage, Verdict, VerdictKind

__all__ = ["ALERT", "ActiveAlerts"]

#: The labels that are the same everywhere: those of the rule in ``monitoring/alerts.yml``.
ALERT = {"alertname": "DynahugdAnomalousLoad", "severity": "critical"}
_RUNBOOK = "https://github.com/dynahugd/dynahugd/blob/main/docs/runbooks/anomalous-load.md"
#: Loads that a description names, and reasons that it gives for the newest.
_LOADS = 5
_REASONS = 5


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of a load: its file, the line that names it, its reasons; all escaped."""

    path: str
    line: str
    reasons: tuple[str, ...]


def _tell(verdict: Verdict) -> _Told:
    load = verdict.load
    path = safe(load.path, 300) if load.path else "(no file)"
    return _Told(
        path,
        f"{safe(load.comm, 64)}[{load.tgid}] of user {load.uid} loaded {path} "
        f"(load {load.id:016x})",
        tuple(reasons_of(verdict)[:_REASONS]),
    )


@dataclass(slots=True)
class _Alert:
    """The anomalous loads of a format since the alert began.

    Attributes
    ----------
    first : when the first came, CLOCK_MONOTONIC in ns.
    latest : the last few by their ids, the newest at the end.
    revision : of all alerts, when the newest came.
    taken : when the newest was sent to who took it first, in ns; None: nobody has.
    """

    first: int
    count: int = 0
    latest: OrderedDict[int, _Told] = field(default_factory=OrderedDict)
    revision: int = 0
    taken: int | None = None


@dataclass(slots=True)
class ActiveAlerts:
    """One alert for each format that had an anomalous load: bounded, because formats are.

    An alert ends ``quiet`` ns after its newest load was sent to who took it, so that it does not
    end unseen while nobody takes it.

    Attributes
    ----------
    revision : number of changes so far.
    """

    revision: int = 0
    _alerts: dict[str, _Alert] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._alerts)

    def take(self, verdict: Verdict, now: int, quiet: int) -> bool:
        """Take note of a verdict; whether it changed anything. ``now``: CLOCK_MONOTONIC, ns."""
        load = verdict.load
        if verdict.stage is Stage.ALERT:
            self._forget(now, quiet)
            alert = self._alerts.setdefault(load.format, _Alert(verdict.time))
            alert.count += 1
            alert.latest[load.id] = _tell(verdict)
            if len(alert.latest) > _LOADS:
                alert.latest.popitem(last=False)
            self.revision += 1
            alert.revision, alert.taken = self.revision, None
            return True
        if verdict.stage is Stage.OVER and verdict.kind is VerdictKind.ANOMALOUS:
            # The last word has what it did after the alert, perhaps under another format.
            told = _tell(verdict)
            for alert in self._alerts.values():
                if alert.latest.get(load.id, told) != told:
                    alert.latest[load.id] = told
                    self.revision += 1
                    return True
        return False

    def taken(self, revision: int, sent: int) -> None:
        """Somebody took the alerts as they were at a revision, sent at that time (ns)."""
        for alert in self._alerts.values():
            if alert.taken is None and alert.revision <= revision:
                alert.taken = sent

    def objects(
        self, labels: Mapping[str, str], clock: WallClock, now: int, quiet: int
    ) -> list[dict[str, Any]]:
        """The alerts as Alertmanager's v2 API wants them.

        ``labels``: all but those of :data:`ALERT` and ``format``.
        """
        self._forget(now, quiet)
        result = []
        for form, alert in self._alerts.items():
            first = clock.iso(alert.first)
            *earlier, newest = alert.latest.values()
            loads = "load" if alert.count == 1 else "loads"
            lines = [
                f"{newest.line}:",
                *(f"- {reason}" for reason in newest.reasons),
                f"{alert.count} anomalous {loads} of this format since {first}"
                + (", the latest before this one:" if earlier else "."),
                *(f"- {told.line}" for told in reversed(earlier)),
            ]
            annotations = {
                "summary": f"The load of {newest.path} on {labels['instance']} is unlike benign "
                "loads",
                "description": "\n".join(lines),
                "runbook_url": _RUNBOOK,
            }
            end = (now if alert.taken is None else alert.taken) + quiet
            result.append(
                {
                    "labels": {**labels, **ALERT, "format": form},
                    "annotations": annotations,
                    "startsAt": first,
                    "endsAt": clock.iso(end),
                }
            )
        return result

    def _forget(self, now: int, quiet: int) -> None:
        for form, alert in list(self._alerts.items()):
            if alert.taken is not None and now >= alert.taken + quiet:
                del self._alerts[form]
