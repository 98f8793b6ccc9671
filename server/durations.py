"""Histograms of how long something took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

NS = 1_000_000_000
BOUNDS = (1e-05, 2.5e-05, 5e-05, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)
"""Upper bounds of the buckets in seconds: a message to a client takes tens of microseconds, a slice of work 1 ms."""

_BOUNDS_NS = [round(bound * NS) for bound in BOUNDS]


class Durations:
    """How often a duration was within each bound, and the sum of all."""

    __slots__ = ("_counts", "sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self.sum_ns = 0

    def observe(self, nanoseconds: int) -> None:
        """Count one."""
        self._counts[bisect_left(_BOUNDS_NS, nanoseconds)] += 1
        self.sum_ns += nanoseconds

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound in seconds, infinity last, and how many were not longer."""
        return zip((*BOUNDS, float("inf")), accumulate(self._counts), strict=True)

    def summary(self) -> dict[str, object]:
        """For ``vgpud status``, in microseconds: the mean, and bounds that half and 99 % of all were not longer than.

        None where nothing was timed, or where the last of :data:`BOUNDS` was not enough.
        """
        count = sum(self._counts)
        return {
            "count": count,
            "mean_us": round(self.sum_ns / count / 1000, 1) if count else None,
            "median_at_most_us": self._bound_us(count, 50),
            "p99_at_most_us": self._bound_us(count, 99),
        }

    def _bound_us(self, count: int, percent: int) -> int | None:
        """The lowest bound that ``percent`` of 100 are within."""
        for bound_ns, within in zip(_BOUNDS_NS, accumulate(self._counts), strict=False):
            if count and within * 100 >= count * percent:
                return bound_ns // 1000
        return None


@dataclass(frozen=True, slots=True)
class WorkTimings:
    """What is timed of sessions' deferred work: a run without an interruption, and a message until its answer."""

    runs: Durations = field(default_factory=Durations)
    messages: Durations = field(default_factory=Durations)

    def summary(self) -> dict[str, object]:
        """For ``vgpud status``."""
        return {"deferred_work": self.runs.summary(), "dma_messages": self.messages.summary()}
