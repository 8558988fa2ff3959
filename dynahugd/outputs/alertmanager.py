"""Alerts pushed to Alertmanager's v2 API as soon as they are raised.

They have the labels of the rule-based alert, so that Alertmanager holds both for one, and
annotations with what the labels of a metric must not carry.
"""

from __future__ import annotations

import json
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynahugd.config import AlertmanagerKeys
from dynahugd.outputs.alerts import ActiveAlerts
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.messages import Message, Say
from dynahugd.verdicts import Verdict

if TYPE_CHECKING:
    from dynahugd.outputs.endpoint import Endpoint

__all__ = ["Alertmanagers", "Pace"]

#: Reasons for which an instance fails that are said before it works again.
_REASONS = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests are made, in seconds.

    All but ``gap`` are cut at random, to the half at most, so that many hosts do not come at once.

    Attributes
    ----------
    gap : from an attempt to the next that has something new.
    again : from a request to the next while there is an alert. Alertmanager forgets alerts when
        it restarts, and those of Prometheus, which come each minute, replace our annotations.
    idle : the same while there is none: the empty list shows early that a password is wrong.
    retry, longest : from a failure to the next attempt; it doubles from the first to the second.
    """

    gap: float = 1.0
    again: float = 10.0
    idle: float = 600.0
    retry: float = 1.0
    longest: float = 60.0


@dataclass(slots=True)
class _Record:
    """What is known of an instance and outlives a reload.

    Attributes
    ----------
    counts : requests by result.
    taken : revision of the alerts that it took last.
    said : why it fails.
    """

    counts: dict[str, int] = field(default_factory=lambda: {"taken": 0, "failed": 0})
    taken: int = 0
    said: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Instance:
    """An Alertmanager, and when it gets its next request; times are of ``time.monotonic``.

    Attributes
    ----------
    tried : revision of the alerts in the last attempt.
    done : no request will follow.
    """

    url: str
    endpoint: Endpoint
    record: _Record = field(default_factory=_Record)
    tried: int = -1
    last: float = 0.0
    due: float = 0.0
    failures: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent: all alerts at a revision and a time (ns)."""

    body: bytes
    revision: int
    sent: int
    timeout: float
    final: bool


class Alertmanagers:
    """Every instance of Alertmanager, each with a thread of its own.

    All active alerts go in each request, with the time at which they end unless more comes.
    Nothing is sent to resolve one: that would also end the rule-based alert, which Prometheus
    would begin anew. When this daemon is killed, its alerts stay until then.

    Parameters
    ----------
    instance : label of this name where ``keys.instance`` is empty.
    say : called from the threads, and never once :meth:`close` has returned.

    Raises
    ------
    DynahugError : an address or file cannot be used, or keys do not fit together.
    """

    def __init__(
        self,
        keys: AlertmanagerKeys,
        instance: str,
        say: Say,
        clock: WallClock,
        pace: Pace | None = None,
    ) -> None:
        self._instances: list[_Instance] = []
        if keys.urls:
            from dynahugd.outputs.endpoint import Endpoint  # its library only where it is used

            self._instances = [
                _Instance(url, Endpoint(url, "/api/v2/alerts", keys))
                for url in dict.fromkeys(keys.urls)
            ]
        # An external label of Prometheus does not replace one that the alert has already.
        self._labels = dict(label.split("=", 1) for label in keys.labels)
        self._labels |= {"job": keys.job, "instance": keys.instance or instance}
        self._quiet, self._timeout = int(keys.quiet * 1e9), keys.timeout
        self._say, self._clock, self._pace = say, clock, pace or Pace()
        self._alerts = ActiveAlerts()
        self._changed = threading.Condition()  # guards alerts and instances
        self._deadline: float | None = None
        self._voice = threading.Lock()
        self._mute = False

    def start(self, before: Alertmanagers | None = None) -> None:
        """Begin to send. ``before`` ends; its alerts, counts and failures are known here."""
        if before is not None:
            if self._instances:
                self._alerts, self._changed = before._alerts, before._changed
            records = {instance.url: instance.record for instance in before._instances}
            for instance in self._instances:
                instance.record = records.get(instance.url, instance.record)
            before.close(0)
        for instance in self._instances:
            threading.Thread(
                target=self._serve, args=(instance,), name="alertmanager", daemon=True
            ).start()

    def take(self, verdict: Verdict) -> None:
        """Take note of a verdict. Waits for no Alertmanager."""
        if self._instances:
            with self._changed:
                if self._alerts.take(verdict, time.monotonic_ns(), self._quiet):
                    self._changed.notify_all()

    def pushes(self) -> dict[tuple[str, str], int]:
        """Requests so far by ``host:port`` and result, which is ``taken`` or ``failed``."""
        counts: dict[tuple[str, str], int] = {}
        for instance in self._instances:
            for result, count in instance.record.counts.items():
                key = instance.endpoint.name, result
                counts[key] = counts.get(key, 0) + count
        return counts

    def close(self, patience: float = 2.0) -> None:
        """End. Who lacks an alert is sent it once more, which takes at most so many seconds."""
        with self._changed:
            self._deadline = time.monotonic() + patience
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: all(item.done or not self._lacks(item) for item in self._instances),
                patience,
            )
        with self._voice:
            self._mute = True

    def _lacks(self, instance: _Instance) -> bool:
        return instance.record.taken < self._alerts.revision

    def _serve(self, instance: _Instance) -> None:
        """Send to one instance until the end."""
        while (request := self._next(instance)) is not None:
            reason = instance.endpoint.post(request.body, request.timeout)
            self._tell(instance, reason)
            self._note(instance, request, reason)

    def _next(self, instance: _Instance) -> _Request | None:
        """Wait until a request is due; None at the end."""
        with self._changed:
            while self._deadline is None and (left := self._left(instance)) > 0:
                self._changed.wait(left)
            timeout, final = self._timeout, self._deadline is not None
            if self._deadline is not None:
                timeout = min(timeout, self._deadline - time.monotonic())
                if timeout <= 0 or not self._lacks(instance):
                    instance.done = True
            if instance.done:
                self._changed.notify_all()
                return None
            sent, revision = time.monotonic_ns(), self._alerts.revision
            alerts = self._alerts.objects(self._labels, self._clock, sent, self._quiet)
            return _Request(json.dumps(alerts).encode(), revision, sent, timeout, final)

    def _left(self, instance: _Instance) -> float:
        """Seconds until the next request: at once with something new, though not in a rush."""
        when = instance.due
        if instance.tried != self._alerts.revision:
            when = min(when, instance.last + self._pace.gap)
        return when - time.monotonic()

    def _note(self, instance: _Instance, request: _Request, reason: str) -> None:
        """What a request came to, and when the next is due."""
        pace, record = self._pace, instance.record
        with self._changed:
            instance.tried, instance.last = request.revision, time.monotonic()
            if reason:
                record.counts["failed"] += 1
                pause = min(pace.longest, pace.retry * 2.0 ** min(instance.failures, 30))
                instance.failures += 1
            else:
                record.counts["taken"] += 1
                record.taken = max(record.taken, request.revision)
                self._alerts.taken(request.revision, request.sent)
                instance.failures = 0
                pause = pace.again if len(self._alerts) else pace.idle
            instance.due = instance.last + pause * random.uniform(0.5, 1)
            instance.done = request.final
            self._changed.notify_all()

    def _tell(self, instance: _Instance, reason: str) -> None:
        """Say that an instance fails, once for each reason, and that it works again."""
        said, name = instance.record.said, instance.endpoint.name
        with self._voice, suppress(OSError):  # alerts do not wait for a log that cannot be written
            if self._mute:
                return
            if not reason and said:
                said.clear()
                self._say(Message.ALERTMANAGER_BACK, f"Alertmanager {name} takes alerts again")
            elif reason and reason not in said and len(said) < _REASONS:
                said.add(reason)
                self._say(
                    Message.ALERTMANAGER_FAILED,
                    f"Alertmanager {name} does not take alerts: {reason}",
                )
