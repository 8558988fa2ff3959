"""The log: what the daemon says and finds, for people, for programs, or for the journal.

Verdicts go to standard output, messages to standard error; under the journal both become entries.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass, field
from typing import Protocol

from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.journal import Journal, connected
from dynahugd.outputs.messages import Message
from dynahugd.outputs.text import as_object, as_text
from dynahugd.verdicts import Stage, Verdict, VerdictKind

__all__ = ["JsonLines", "Limiter", "Log", "PlainLines", "Writer", "open_log"]


class Writer(Protocol):
    """A form of the log.

    Attributes
    ----------
    complete : it takes every verdict, for programs; else those that a person wants to see.
    """

    @property
    def complete(self) -> bool: ...

    def message(self, message: Message, text: str) -> None: ...

    def verdict(self, message: Message, verdict: Verdict, told: Container[str]) -> None:
        """Write a verdict. ``told``: features of the reasons that are known from its alert."""


class PlainLines:
    """Lines for people."""

    complete = False

    def __init__(self) -> None:
        self._clock = WallClock()

    def message(self, message: Message, text: str) -> None:
        """A line of the program's own."""
        print(text, file=sys.stderr, flush=True)

    def verdict(self, message: Message, verdict: Verdict, told: Container[str]) -> None:
        """One line, and one more for each reason."""
        print(as_text(verdict, self._clock, told), flush=True)


class JsonLines:
    """Lines for programs."""

    complete = True

    def __init__(self) -> None:
        self._clock = WallClock()

    def message(self, message: Message, text: str) -> None:
        """An object with time, level, the message's name and id, and the text."""
        line = {
            "time": self._clock.iso(time.monotonic_ns()),
            "level": message.level.name.lower(),
            "message": message.name.lower(),
            "message_id": message.id,
            "text": text,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

    def verdict(self, message: Message, verdict: Verdict, told: Container[str]) -> None:
        """The object of the alert log."""
        print(json.dumps(as_object(verdict, self._clock)), flush=True)


@dataclass(slots=True)
class Limiter:
    """Lets so many of a kind pass in each period, and counts the others.

    Parameters
    ----------
    most : of a kind in a period.
    period : seconds.
    """

    most: int = 100
    period: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _begun: float = -float("inf")
    _seen: Counter[tuple[Message, Hashable]] = field(default_factory=Counter)

    def passes(self, message: Message, kind: Hashable = None) -> bool:
        """Whether one more may pass."""
        self._seen[message, kind] += 1
        return self._seen[message, kind] <= self.most

    def due(self) -> dict[Message, int]:
        """At the end of a period: how many of each message did not pass in it."""
        now = self.clock()
        if now - self._begun < self.period:
            return {}
        held: Counter[Message] = Counter()
        for (message, _), count in self._seen.items():
            held[message] += max(count - self.most, 0)
        self._seen.clear()
        self._begun = now
        return {message: count for message, count in held.items() if count}


class Log:
    """Chooses what is worth a line. Safe to use from several threads."""

    def __init__(self, writer: Writer, limiter: Limiter | None = None) -> None:
        self._writer = writer
        self._limiter = limiter or Limiter()
        self._lock = threading.Lock()
        self._told: dict[int, set[str]] = {}

    def say(self, message: Message, text: str) -> None:
        """Give a message of the program's own; hostile parts of the text are escaped already."""
        with self._lock:
            if self._limiter.passes(message):
                self._writer.message(message, text)

    def show(self, verdict: Verdict) -> None:
        """Give a verdict: an anomalous load at its alert, and when it is over if it did more."""
        load, anomalous = verdict.load, verdict.kind is VerdictKind.ANOMALOUS
        reasons = {reason.feature for reason in verdict.score.reasons}
        told: set[str] = set()
        if verdict.stage is Stage.ALERT:
            message = Message.ANOMALOUS
            self._told[load.id] = reasons
        elif verdict.stage is Stage.OVER:
            message = Message.OVER
            told = self._told.pop(load.id, set())
            if not anomalous or not (self._writer.complete or reasons - told):
                return
        elif anomalous and not self._writer.complete:
            return
        else:
            inconclusive = verdict.kind is VerdictKind.INCONCLUSIVE
            message = Message.INCONCLUSIVE if inconclusive else Message.BENIGN
        with self._lock:
            # By user: a flood of alerts by one must not hide those of another.
            if self._writer.complete or self._limiter.passes(message, load.uid):
                self._writer.verdict(message, verdict, told)

    def turn(self) -> None:
        """Once in a while: say how much was held back."""
        with self._lock:
            for message, count in self._limiter.due().items():
                text = f"{count} more of a kind were not printed: {message.subject}"
                self._writer.message(Message.SUPPRESSED, text)


def open_log(form: str) -> Log:
    """The log in the form that the configuration names (``daemon.log_format``)."""
    if form == "journal" or (form == "auto" and connected()):
        return Log(Journal())
    return Log(JsonLines() if form == "json" else PlainLines())
