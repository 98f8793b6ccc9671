"""Ranges of guest pages as arrays: the form in which the pin cache works on scatter lists of any size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Spans(NamedTuple):
    """The guest pages ``[start[i], end[i])``: page numbers, disjoint and in ascending order unless it is said."""

    start: Ints
    end: Ints

    @classmethod
    def one(cls, start: int, end: int) -> Spans:
        """A single span."""
        return cls(np.array((start,), np.int64), np.array((end,), np.int64))

    @property
    def pages(self) -> int:
        """How many pages there are in all."""
        return int(self.end.sum() - self.start.sum())

    def take(self, which: slice | NDArray[np.bool_] | Ints) -> Spans:
        """Some of the spans."""
        return Spans(self.start[which], self.end[which])

    def cut(self, borders: Ints) -> Spans:
        """The same pages, in spans that reach across none of ``borders`` (ascending)."""
        if not len(self.start) or not len(borders):
            return self
        index = np.searchsorted(self.start, borders, "right") - 1
        inside = (index >= 0) & (self.start[index] < borders) & (borders < self.end[index])
        if not inside.any():
            return self
        at, borders = index[inside] + 1, borders[inside]
        start = np.insert(self.start, at, borders)
        end = np.insert(self.end, at, self.end[at - 1])
        end[:-1] = np.minimum(end[:-1], start[1:])
        return Spans(start, end)

    def both(self, other: Spans) -> Spans:
        """The pages that are in both."""
        index, span = overlapping(self.start, self.end, other)
        return Spans(
            np.maximum(self.start[index], other.start[span]), np.minimum(self.end[index], other.end[span])
        )

    def clip(self, start: int, end: int) -> Spans:
        """The part of the pages that lies in ``[start, end)``."""
        low = np.searchsorted(self.end, start, "right")
        high = max(int(low), int(np.searchsorted(self.start, end, "left")))
        return Spans(
            np.maximum(self.start[low:high], np.int64(start)), np.minimum(self.end[low:high], np.int64(end))
        )


def overlapping(start: Ints, end: Ints, spans: Spans) -> tuple[Ints, Ints]:
    """The pairs of a range ``[start[i], end[i])``, disjoint and ascending, and a span that have a page in common.

    Span by span, as indexes of both. ``spans`` may be in any order and may overlap.
    """
    low, counts = _overlaps(start, end, spans)
    span = np.repeat(np.arange(len(low)), counts)
    index = np.arange(len(span)) + np.repeat(low - np.cumsum(counts) + counts, counts)
    return index, span


def count_overlapping(start: Ints, end: Ints, spans: Spans) -> int:
    """How many pairs :func:`overlapping` would give."""
    return int(_overlaps(start, end, spans)[1].sum())


def _overlaps(start: Ints, end: Ints, spans: Spans) -> tuple[Ints, Ints]:
    """For each span the first range that overlaps it, and how many do."""
    low = np.searchsorted(end, spans.start, "right")
    return low, np.searchsorted(start, spans.end, "left") - low


def narrowed(column: Ints) -> NDArray[np.integer]:
    """The same numbers, none of them negative, in the smallest type that holds them all."""
    return column.astype(np.min_scalar_type(int(column.max(initial=0))))
