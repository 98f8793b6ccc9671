"""Metric families and their samples, as Prometheus' data model has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from server.durations import NS, Durations

Labels = Mapping[str, str]
NO_LABELS: Labels = {}


class Kind(Enum):
    """The type of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Sample(NamedTuple):
    """One value. ``suffix`` is what its name has behind the family's."""

    suffix: str
    labels: Labels
    value: float


@dataclass(slots=True)
class Family:
    """Samples of one name. ``name`` has no ``_total`` at its end; samples of counters do."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, labels: Labels = NO_LABELS) -> Family:
        """Add a sample of a counter or gauge; returns the family."""
        suffix = "_total" if self.kind is Kind.COUNTER else ""
        self.samples.append(Sample(suffix, labels, value))
        return self


def counter(name: str, help_text: str, value: float | None = None, labels: Labels = NO_LABELS) -> Family:
    """A counter, with its one sample if there is a ``value``."""
    family = Family(name, Kind.COUNTER, help_text)
    return family if value is None else family.add(value, labels)


def gauge(name: str, help_text: str, value: float | None = None, labels: Labels = NO_LABELS) -> Family:
    """A gauge, with its one sample if there is a ``value``."""
    family = Family(name, Kind.GAUGE, help_text)
    return family if value is None else family.add(value, labels)


def histogram(name: str, help_text: str, durations: Durations) -> Family:
    """A histogram of seconds."""
    family = Family(name, Kind.HISTOGRAM, help_text)
    count = 0
    for bound, count in durations.cumulative():
        family.samples.append(Sample("_bucket", {"le": number(bound)}, count))
    family.samples.append(Sample("_sum", NO_LABELS, durations.sum_ns / NS))
    family.samples.append(Sample("_count", NO_LABELS, count))
    return family


def labelled(families: Iterable[Family], labels: Labels) -> list[Family]:
    """The families with ``labels`` on every sample, in front of its own."""
    return [
        Family(
            family.name,
            family.kind,
            family.help,
            [sample._replace(labels={**labels, **sample.labels}) for sample in family.samples],
        )
        for family in families
    ]


def number(value: float) -> str:
    """A value as both text formats write it: the shortest text that is the same number."""
    if value == float("inf"):
        return "+Inf"
    return repr(value)
