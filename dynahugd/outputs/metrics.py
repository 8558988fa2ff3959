"""Metrics: one collector that turns the daemon's state into families when it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dynahugd.escape import escape
from dynahugd.outputs import selfcost
from dynahugd.outputs.families import Description, Samples
from dynahugd.outputs.tally import FAR, Histogram, Tally
from dynahugd.probes.formats import FORMATS
from dynahugd.probes.layout import Kind, Loss
from dynahugd.probes.stages import ProbeStage
from dynahugd.probes.usage import Usage
from dynahugd.verdicts import VerdictKind

__all__ = ["METRICS", "DaemonCollector", "Snapshot", "documentation", "registry"]


#: What the daemon does and how it fares. With what it costs, these are ``METRICS``: all of its own,
#: from which ``docs/metrics.md`` is generated.
_OF_LOADS = tuple(
    Description(*entry)
    for entry in (
        ("dynahugd_build", "info", (), "Version, Python and kernel."),
        ("dynahugd_loads", "counter", ("format", "verdict"), "Loads that are over, by verdict."),
        ("dynahugd_alerts", "counter", ("format",), "Alerts raised: one for each anomalous load."),
        ("dynahugd_loads_open", "gauge", (), "Loads whose span lasts."),
        ("dynahugd_load_duration_seconds", "histogram", (), "Length of the spans."),
        (
            "dynahugd_detection_latency_seconds",
            "histogram",
            (),
            "From the first telling act in the kernel to the alert.",
        ),
        ("dynahugd_anomaly_score", "histogram", (), "-log10 of the p-value of each load."),
        ("dynahugd_syscalls", "counter", (), "System calls counted in loads."),
        ("dynahugd_records", "counter", ("kind",), "Records read from the kernel."),
        (
            "dynahugd_records_lost",
            "counter",
            ("reason",),
            "Losses: ring = no room for a record; loads, tasks, files = a table was full; depth = "
            "unpicklings nested deeper than the kernel's return probes; late = an interpreter went "
            "on before its system calls were watched.",
        ),
        (
            "dynahugd_probe_stage",
            "gauge",
            ("stage",),
            "1 for how much is attached: resting = nothing to system calls, no ML process lives; "
            "watching = to telling ones; counting = to all, lately something was loaded or began.",
        ),
        (
            "dynahugd_interpreters",
            "gauge",
            ("state",),
            "Interpreter files: attached, not_covered (its unpickler cannot be seen), released.",
        ),
        (
            "dynahugd_baseline",
            "info",
            (),
            "The baseline in force: source, number of loads and clusters, and of loads of this "
            "host that it was learned from.",
        ),
        (
            "dynahugd_baseline_trained_timestamp_seconds",
            "gauge",
            (),
            "When the baseline was trained, Unix time.",
        ),
        (
            "dynahugd_baseline_drift_ratio",
            "gauge",
            (),
            f"Share of the latest 1,000 loads that did not alert whose p-value is at most {FAR:g}: "
            f"about {FAR:g} where the baseline fits the host.",
        ),
        (
            "dynahugd_learnings",
            "counter",
            ("result",),
            "How often what was learned on this host was taken over, or not.",
        ),
        ("dynahugd_ready", "gauge", (), "1 while every probe is attached and loads are judged."),
        (
            "dynahugd_config_last_reload_successful",
            "gauge",
            (),
            "0 if the configuration that was read last cannot be used, else 1.",
        ),
        (
            "dynahugd_config_last_reload_success_timestamp_seconds",
            "gauge",
            (),
            "When the configuration in force was read, Unix time.",
        ),
        (
            "dynahugd_alertmanager_pushes",
            "counter",
            ("alertmanager", "result"),
            "Requests to each Alertmanager of the configuration (host:port): taken, failed. Each "
            "has all active alerts, or none.",
        ),
    )
)
METRICS = (*_OF_LOADS, *selfcost.METRICS)
_BY_NAME = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the collector needs to know besides the tally."""

    tally: Tally
    loads_open: int
    lost: dict[Loss, int]
    stage: ProbeStage
    interpreters: dict[str, int]
    build: dict[str, str]
    baseline: dict[str, str]
    baseline_trained: float
    ready: bool
    pushes: dict[tuple[str, str], int]
    usage: Usage


def _histogram(name: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, running = [], 0
    for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        running += count
        buckets.append(("+Inf" if bound == math.inf else str(float(bound)), float(running)))
    return HistogramMetricFamily(name, _BY_NAME[name].help, buckets, histogram.total)


def _counter(name: str, samples: Samples) -> CounterMetricFamily:
    return _BY_NAME[name].counter(samples)


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return _BY_NAME[name].gauge((((), value),))


class DaemonCollector(Collector):
    """Asks for a snapshot at every scrape.

    All combinations of the bounded labels are exposed from the start, at zero, so that rates work
    from the first event on.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """The families."""
        now = self._snapshot()
        tally = now.tally
        yield InfoMetricFamily("dynahugd_build", _BY_NAME["dynahugd_build"].help, now.build)
        yield _counter(
            "dynahugd_loads",
            (
                ((form, kind.value), tally.loads[form, kind.value])
                for form in FORMATS
                for kind in VerdictKind
            ),
        )
        yield _counter("dynahugd_alerts", (((form,), tally.alerts[form]) for form in FORMATS))
        yield _gauge("dynahugd_loads_open", now.loads_open)
        yield _histogram("dynahugd_load_duration_seconds", tally.duration)
        yield _histogram("dynahugd_detection_latency_seconds", tally.latency)
        yield _histogram("dynahugd_anomaly_score", tally.score)
        yield _counter("dynahugd_syscalls", (((), tally.syscalls),))
        yield _counter(
            "dynahugd_records",
            (((kind.name.lower(),), tally.records[kind.name.lower()]) for kind in Kind),
        )
        yield _counter(
            "dynahugd_records_lost", (((loss.name.lower(),), now.lost[loss]) for loss in Loss)
        )
        yield _BY_NAME["dynahugd_probe_stage"].gauge(
            ((stage.value,), stage == now.stage) for stage in ProbeStage
        )
        yield _BY_NAME["dynahugd_interpreters"].gauge(
            ((state,), count) for state, count in now.interpreters.items()
        )
        yield InfoMetricFamily(
            "dynahugd_baseline",
            _BY_NAME["dynahugd_baseline"].help,
            {key: escape(value) for key, value in now.baseline.items()},  # a path is among them
        )
        yield _gauge("dynahugd_baseline_trained_timestamp_seconds", now.baseline_trained)
        yield _gauge("dynahugd_baseline_drift_ratio", tally.drift())
        yield _counter(
            "dynahugd_learnings",
            (
                (("taken_over",), tally.learnings[True]),
                (("refused",), tally.learnings[False]),
            ),
        )
        yield _gauge("dynahugd_ready", now.ready)
        yield _gauge("dynahugd_config_last_reload_successful", tally.configured)
        yield _gauge("dynahugd_config_last_reload_success_timestamp_seconds", tally.configured_time)
        yield _counter("dynahugd_alertmanager_pushes", now.pushes.items())
        yield from selfcost.families(now.usage)


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """A registry with the daemon's metrics and ``process_*``."""
    result = CollectorRegistry(auto_describe=False)
    result.register(DaemonCollector(snapshot))
    ProcessCollector(registry=result)
    return result


_SUFFIX = {"counter": "_total", "info": "_info"}


def documentation() -> str:
    """``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "At `http://127.0.0.1:9797/metrics` (`--listen`). Labels are bounded: never a pid, path,",
        "user or hash. `/-/healthy` answers 200 while the consumer loop runs, `/-/ready` 200 once",
        "everything is attached, else 503. `process_*` are the client library's.",
        "",
        "Generated by `python -m dynahugd.outputs.metrics`.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS:
        name = metric.name + _SUFFIX.get(metric.kind, "")
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.help} |")
    lines += [
        "",
        f"`format` is one of {', '.join(f'`{form}`' for form in FORMATS)}; "
        f"`verdict` one of {', '.join(f'`{kind.value}`' for kind in VerdictKind)}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(documentation(), end="")
