"""What the daemon counts about itself: plain numbers, turned into metrics elsewhere."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field

from dynahugd.features.rows import total_calls
from dynahugd.outputs.clock import WallClock
from dynahugd.outputs.text import safe
from dynahugd.probes.batch import Batch
from dynahugd.probes.layout import Kind
from dynahugd.verdicts import Stage, Verdict, VerdictKind

__all__ = ["FAR", "Histogram", "Tally"]

#: A load with at most this p-value is far from every cluster: one in 100, if the baseline fits.
FAR = 0.01
#: So many loads tell how well it fits now.
_LATEST = 1000


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound, the last bucket without one, and the sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Tally:
    """Counters of the daemon, in the order of the data's way through it.

    Attributes
    ----------
    learnings : how often what was learned was taken over (True) or not (False).
    last_alert : the latest one.
    configured : whether the configuration that was read last is in force.
    configured_time : when the one in force was read, Unix time.
    far : of the latest loads, whether each is far from every cluster.
    """

    records: Counter[str] = field(default_factory=Counter)
    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    alerts: Counter[str] = field(default_factory=Counter)
    syscalls: int = 0
    duration: Histogram = field(
        default_factory=lambda: Histogram((0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 10, 30, 60, 300))
    )
    latency: Histogram = field(
        default_factory=lambda: Histogram(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
        )
    )
    score: Histogram = field(
        default_factory=lambda: Histogram((0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 9, 12))
    )
    learnings: Counter[bool] = field(default_factory=Counter)
    last_alert: Verdict | None = None
    configured: bool = True
    configured_time: float = field(default_factory=time.time)
    far: deque[bool] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def take_batch(self, batch: Batch) -> None:
        """Count the records of a batch."""
        for kind, count in Counter(batch.records["kind"].tolist()).items():
            self.records[Kind(kind).name.lower()] += count

    def take_verdict(self, verdict: Verdict) -> None:
        """Count a verdict: alerts when they are raised, loads when they are over."""
        load = verdict.load
        if verdict.stage is Stage.ALERT:
            self.alerts[load.format] += 1
            self.last_alert = verdict
            if verdict.latency is not None:
                self.latency.observe(verdict.latency)
        elif verdict.stage is Stage.OVER:
            self.loads[load.format, verdict.kind.value] += 1
            self.syscalls += total_calls(load)
            self.duration.observe(max(load.end - load.begin, 0) / 1e9)
            self.score.observe(-math.log10(verdict.score.p_value))
            if verdict.kind is not VerdictKind.ANOMALOUS:
                self.far.append(verdict.score.p_value <= FAR)

    def summary(self, clock: WallClock) -> str:
        """One line on what was seen so far."""
        alerts = self.alerts.total()
        text = f"{self.loads.total()} loads, {alerts} of them anomalous"
        if self.last_alert is not None:
            load = self.last_alert.load
            time = f"{clock.at(self.last_alert.time).astimezone():%Y-%m-%d %H:%M:%S}"
            text += f"; the last one {time}: {safe(load.comm, 64)}[{load.tgid}] "
            text += safe(load.path, 256) or "(no file)"
        return text

    def drift(self) -> float:
        """Share of the latest loads that are far from every cluster, anomalous ones aside."""
        return sum(self.far) / len(self.far) if self.far else 0.0
