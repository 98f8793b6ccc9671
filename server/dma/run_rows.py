"""Runs of mapped pages as the columns of one array, and what the pin cache does to many of them at once.

A run is pages that follow each other both in the guest and in the DMA domain and that differ in nothing else. Rows
are an array of shape (7, n): one run per column, disjoint and by ascending START.

=======  =====================================================================================
START    first guest page
END      guest page behind the last one
DMA      page number of the dma_addr of START
COUNT    pins that hold these pages; 0 where they are merely retained
WRITERS  how many of these pins may write
FLAGS    :class:`RunFlags`
STAMP    of retained pages: when their last pin let go, as a number that grows
=======  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Final

import numpy as np
from numpy.typing import NDArray

from devices.contract import DmaSegment
from server.dma.address_space import PAGE_SHIFT
from server.dma.spans import Ints, Spans, overlapping

Rows = NDArray[np.int64]

COLUMNS: Final = 7
START, END, DMA, COUNT, WRITERS, FLAGS, STAMP = range(COLUMNS)


class RunFlags(IntFlag):
    """What is known of a run. The first two bits are those of :class:`devices.contract.Prot`."""

    MAY_READ = 1
    """A pin found that the client permits reading."""
    MAY_WRITE = 2
    """A pin found that the client permits writing."""
    WRITABLE = 4
    """The domain lets the device write."""
    SEAM = 8
    """The run begins where a mapping of the domain does: it is never joined to the run before it."""


SEAM: Final = RunFlags.SEAM.value


def empty_rows(count: int = 0) -> Rows:
    """``count`` runs of zeros."""
    return np.zeros((COLUMNS, count), np.int64)


def clipped(rows: Rows, spans: Spans) -> tuple[Rows, Ints]:
    """The parts of the runs that lie in ``spans``, span by span, and the number of each one's span.

    ``spans`` may be in any order and may overlap.
    """
    index, span = overlapping(rows[START], rows[END], spans)
    found = rows[:, index]
    start = np.maximum(found[START], spans.start[span])
    cut = start > found[START]
    found[DMA] += start - found[START]
    found[START] = start
    found[FLAGS, cut] &= ~SEAM
    np.minimum(found[END], spans.end[span], out=found[END])
    return found, span


def gaps(spans: Spans, found: Rows) -> Spans:
    """The parts of ``spans`` that the runs ``found``, which lie within them, leave out."""
    if not found.shape[1]:
        return spans
    if pages_of(found) == spans.pages:
        return spans.take(slice(0))
    start = np.sort(np.concatenate((spans.start, found[END])))
    end = np.sort(np.concatenate((spans.end, found[START])))
    some = start < end
    return Spans(start[some], end[some])


def cut(rows: Rows, borders: Ints) -> Rows:
    """The same pages, in runs that reach across none of ``borders``."""
    if not rows.shape[1]:
        return rows
    index = np.searchsorted(rows[START], borders, "right") - 1
    across = (index >= 0) & (rows[START, index] < borders) & (borders < rows[END, index])
    if not across.any():
        return rows
    # Where a span ends and the next one starts, there are two equal borders.
    borders, first = np.unique(borders[across], return_index=True)
    index = index[across][first]
    new = rows[:, index]
    new[DMA] += borders - new[START]
    new[START] = borders
    new[FLAGS] &= ~SEAM
    rows = np.insert(rows, index + 1, new, axis=1)
    np.minimum(rows[END, :-1], rows[START, 1:], out=rows[END, :-1])
    return rows


def inside(rows: Rows, spans: Spans) -> NDArray[np.bool_]:
    """Which runs lie in ``spans``, whose borders none of them crosses."""
    index = np.searchsorted(spans.start, rows[START], "right") - 1
    within: NDArray[np.bool_] = (index >= 0) & (rows[START] < spans.end[index])
    return within


def merged(rows: Rows, new: Rows) -> Rows:
    """Both, which have no page in common."""
    if not rows.shape[1]:
        return new
    return np.insert(rows, np.searchsorted(rows[START], new[START]), new, axis=1)


def joined(rows: Rows) -> Rows:
    """The same pages in as few runs as they can be."""
    touch = rows[START, 1:] == rows[END, :-1]
    if not touch.any():
        return rows
    touch &= rows[DMA, 1:] - rows[DMA, :-1] == rows[END, :-1] - rows[START, :-1]
    touch &= rows[FLAGS, 1:] == rows[FLAGS, :-1] & ~SEAM
    for column in (COUNT, WRITERS, STAMP):
        touch &= rows[column, 1:] == rows[column, :-1]
    if not touch.any():
        return rows
    result = rows[:, np.append(True, ~touch)]
    result[END] = rows[END, np.append(~touch, True)]
    return result


def pages_of(rows: Rows) -> int:
    """How many pages the runs have."""
    return int(rows[END].sum() - rows[START].sum())


def coalesced(dma_addr: Ints, length: Ints) -> list[DmaSegment]:
    """Pieces of bus address space, in order and in bytes, with those that follow each other made one."""
    if not len(dma_addr):
        return []
    begins = np.flatnonzero(np.append(True, dma_addr[1:] != dma_addr[:-1] + length[:-1]))
    lengths = np.add.reduceat(length, begins)
    return list(map(DmaSegment, dma_addr[begins].tolist(), lengths.tolist()))


def segments_of(rows: Rows) -> list[DmaSegment]:
    """Where the runs are in the domain, neighbours made one."""
    if rows.shape[1] == 1:
        start, end, dma = rows[:COUNT, 0].tolist()
        return [DmaSegment(dma << PAGE_SHIFT, end - start << PAGE_SHIFT)]
    return coalesced(rows[DMA] << PAGE_SHIFT, rows[END] - rows[START] << PAGE_SHIFT)


def rows_at(pieces: Spans, segments: Sequence[DmaSegment], flags: Ints) -> Rows:
    """Runs for ``pieces``, in any order, that a domain has just mapped, in that order, at ``segments``.

    ``flags`` are those of each piece. The runs come in the order of the pieces. Where a segment ends within a
    piece it becomes two runs.
    """
    if len(pieces.start) == len(segments) == 1:
        dma = segments[0].dma_addr >> PAGE_SHIFT
        return np.array([[*pieces.start], [*pieces.end], [dma], [0], [0], [*flags], [0]], np.int64)
    sizes = pieces.end - pieces.start
    if len(segments) == 1:
        rows = np.zeros((COLUMNS, len(sizes)), np.int64)
        rows[START], rows[END], rows[FLAGS] = pieces.start, pieces.end, flags
        rows[DMA] = (segments[0].dma_addr >> PAGE_SHIFT) + np.cumsum(sizes) - sizes
        return rows
    piece_at = np.cumsum(sizes) - sizes
    lengths = np.array([segment.length for segment in segments], np.int64) >> PAGE_SHIFT
    segment_at = np.cumsum(lengths) - lengths
    begins = np.union1d(piece_at, segment_at)
    piece = np.searchsorted(piece_at, begins, "right") - 1
    segment = np.searchsorted(segment_at, begins, "right") - 1
    addresses = np.array([segment.dma_addr for segment in segments], np.int64) >> PAGE_SHIFT
    rows = empty_rows(len(begins))
    rows[START] = pieces.start[piece] + begins - piece_at[piece]
    rows[END] = rows[START] + np.diff(begins, append=sizes.sum())
    rows[DMA] = addresses[segment] + begins - segment_at[segment]
    rows[FLAGS] = flags[piece]
    return rows
