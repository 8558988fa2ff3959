"""A metric's description, and the family that ``prometheus_client`` makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

__all__ = ["Description", "Samples"]

#: Values of the labels, in the order of the description, and the sample's own.
Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class Description:
    """One metric: name without ``_total``, type, labels, help."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    def counter(self, samples: Samples) -> CounterMetricFamily:
        """A counter's family."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family

    def gauge(self, samples: Samples) -> GaugeMetricFamily:
        """A gauge's family."""
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family
