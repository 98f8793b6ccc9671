"""The mapped pages by guest page: runs in a sorted sequence of chunks, kept in 13 to 35 bytes each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.dma.run_rows import (
    COLUMNS,
    COUNT,
    DMA,
    END,
    FLAGS,
    SEAM,
    START,
    WRITERS,
    Rows,
    clipped,
    cut,
    empty_rows,
    inside,
    joined,
    merged,
)
from server.dma.spans import Ints, Spans, narrowed

_CHUNK: Final = 2048
"""Most runs in a chunk: a change rewrites the chunks that it touches."""
_NARROW: Final = 128
"""From this many runs on, a chunk keeps its columns in the smallest types that hold them."""

_NARROWEST: Final = 255
"""What the smallest type of a narrow column holds."""

Change = Callable[[Rows, NDArray[np.bool_]], Rows]
"""What to do with a chunk's runs, of which the marked ones are meant: changes them in place, or gives others."""


class RunMap:
    """Disjoint runs (:mod:`server.dma.run_rows`) by guest page.

    Chunk ``i`` holds the pages from ``fences[i]`` to ``fences[i + 1]``. All work on many runs is done on arrays,
    a chunk at a time: its cost is that of the chunks that are touched.
    """

    def __init__(self) -> None:
        self._chunks = [_Chunk(empty_rows())]
        self._fences = [0]

    def __len__(self) -> int:
        return sum(chunk.size for chunk in self._chunks)

    def rows(self) -> Rows:
        """All runs."""
        return np.concatenate([chunk.rows() for chunk in self._chunks], axis=1)

    def any_in(self, start: int, end: int) -> bool:
        """Whether any page of ``[start, end)`` is mapped; O(log n)."""
        last = bisect_left(self._fences, end) - 1
        while last >= 0:
            chunk = self._chunks[last]
            index = bisect_left(chunk.starts, end) - 1
            if index >= 0:
                return chunk.end(index) > start
            last -= 1
        return False

    def lookup(self, spans: Spans) -> Rows:
        """The mapped parts of ``spans``, in order."""
        found = [
            clipped(self._chunks[index].rows(), part)[0] for index, part in self._touched(self._fenced(spans))
        ]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found, axis=1) if found else empty_rows()

    def update(self, spans: Spans, change: Change, new: Rows | None = None) -> None:
        """Apply ``change`` to the runs of ``spans``, after cutting those that reach across their borders.

        ``new`` are runs within ``spans``, at pages that are not mapped, that are added afterwards.
        """
        spans = self._fenced(spans)
        if new is not None:
            new = cut(new, self._fence_array)
        result: list[tuple[int, Rows]] = []
        for index, part in self._touched(spans):
            rows = cut(self._chunks[index].rows(), np.concatenate((part.start, part.end)))
            rows = change(rows, inside(rows, part))
            if new is not None:
                rows = merged(rows, self._of_chunk(index, new))
            result.append((index, joined(rows)))
        for index, rows in reversed(result):
            self._replace(index, rows)

    def insert(self, new: Rows) -> None:
        """Add runs at pages that are not mapped."""
        new = cut(new, self._fence_array) if len(self._fences) > 1 else new
        for index, _ in reversed(list(self._touched(Spans(new[START], new[END])))):
            self._replace(index, merged(self._chunks[index].rows(), self._of_chunk(index, new)))

    def remove(self, start: int, end: int) -> int | None:
        """Take out the run that is ``[start, end)`` if a single pin holds it; returns its DMA page, else None.

        The short way for one range that is nobody else's.
        """
        where = self._exact(start, end)
        if where is None:
            return None
        rows = self._chunks[where[0]].rows()
        if rows[COUNT, where[1]] != 1:
            return None
        self._replace(where[0], np.delete(rows, where[1], axis=1))
        return int(rows[DMA, where[1]])

    def adjust(self, start: int, end: int, *, pins: int, writers: int, flags: int) -> bool:
        """Add ``pins`` and ``writers`` to the counts of the run that is ``[start, end)``, in place.

        This is the short way for one range that is pinned already and stays so. False, and nothing is changed,
        where there is no such run, where it lacks one of ``flags``, where its count would become, or is, 0, or
        where it might become one run with a neighbour.
        """
        where = self._exact(start, end)
        if where is None:
            return False
        return self._chunks[where[0]].adjust(where[1], pins=pins, writers=writers, flags=flags)

    def adjust_all(self, spans: Spans, *, pins: int, writers: int, flags: int) -> bool:
        """As :meth:`adjust` for spans each of which is exactly a run; all or none."""
        parts = [(self._chunks[index], part) for index, part in self._touched(self._fenced(spans))]
        places = [chunk.find(part, pins=pins, writers=writers, flags=flags) for chunk, part in parts]
        if any(place is None for place in places):
            return False
        for (chunk, _), place in zip(parts, places, strict=True):
            if place is not None:
                chunk.adjust_all(place, pins=pins, writers=writers)
        return True

    def idle(self) -> Rows:
        """The runs that nobody pins."""
        found = [
            rows[:, rows[COUNT] == 0] for chunk in self._chunks if chunk.has_idle for rows in [chunk.rows()]
        ]
        return np.concatenate(found, axis=1) if found else empty_rows()

    def _exact(self, start: int, end: int) -> tuple[int, int] | None:
        """The chunk, and the place in it, of the run that is ``[start, end)``."""
        number = bisect_right(self._fences, start) - 1
        chunk = self._chunks[number]
        index = bisect_left(chunk.starts, start)
        if index == chunk.size or chunk.starts[index] != start or chunk.end(index) != end:
            return None
        return number, index

    @property
    def _fence_array(self) -> Ints:
        return np.array(self._fences, np.int64)

    def _fenced(self, spans: Spans) -> Spans:
        return spans.cut(self._fence_array) if len(self._fences) > 1 else spans

    def _touched(self, spans: Spans) -> Iterator[tuple[int, Spans]]:
        """The chunks that ``spans``, which reach across no fence, lie in, and the spans of each."""
        if len(self._fences) == 1:
            if len(spans.start):
                yield 0, spans
            return
        bounds = np.append(np.searchsorted(spans.start, self._fence_array), len(spans.start))
        for index in np.flatnonzero(np.diff(bounds)).tolist():
            yield index, spans.take(slice(bounds[index], bounds[index + 1]))

    def _of_chunk(self, index: int, rows: Rows) -> Rows:
        low = np.searchsorted(rows[START], self._fences[index])
        if index + 1 == len(self._fences):
            return rows[:, low:]
        return rows[:, low : np.searchsorted(rows[START], self._fences[index + 1])]

    def _replace(self, index: int, rows: Rows) -> None:
        size = rows.shape[1]
        if size == 0 and len(self._chunks) > 1:
            del self._chunks[index]
            del self._fences[index]
            self._fences[0] = 0
            return
        if size <= _CHUNK:
            self._chunks[index] = _Chunk(rows)
            return
        parts = np.array_split(np.arange(size), -(-size * 4 // (3 * _CHUNK)))
        self._chunks[index : index + 1] = [_Chunk(rows[:, part]) for part in parts]
        self._fences[index + 1 : index + 1] = [int(rows[START, part[0]]) for part in parts[1:]]


class _Chunk:
    """Some runs, as rows where they are few, in narrow columns where they are many.

    A narrow chunk has the number of pages in the place of END: it takes fewer bytes.
    """

    __slots__ = ("_columns", "_rows", "has_idle", "size", "starts")

    def __init__(self, rows: Rows) -> None:
        self.size = rows.shape[1]
        self.has_idle = bool((rows[COUNT] == 0).any())
        self._rows: Rows | None = None
        self._columns: list[NDArray[np.integer]] = []
        if self.size < _NARROW:
            self._rows = np.ascontiguousarray(rows)
            self.starts = memoryview(self._rows[START].data)
        else:
            columns = list(rows)
            columns[END] = rows[END] - rows[START]
            self._columns = [narrowed(column) for column in columns]
            self.starts = memoryview(self._columns[START].data)

    def rows(self) -> Rows:
        """The runs; to be changed only by who makes a new chunk of them."""
        if self._rows is not None:
            return self._rows.copy()
        rows = np.empty((COLUMNS, self.size), np.int64)
        for row, column in zip(rows, self._columns, strict=True):
            row[:] = column
        rows[END] += rows[START]
        return rows

    def end(self, index: int) -> int:
        """Where run ``index`` ends."""
        if self._rows is not None:
            return int(self._rows[END, index])
        return int(self._columns[END][index]) + int(self.starts[index])

    def find(self, spans: Spans, *, pins: int, writers: int, flags: int) -> Ints | None:
        """Where the runs are that ``spans`` are, if :meth:`adjust_all` can change them all; else None."""
        if not self.size or spans.start[-1] > self.starts[-1]:
            return None
        columns = self._columns if self._rows is None else self._rows
        place = np.searchsorted(np.asarray(self.starts), spans.start)
        end = columns[END][place]
        if self._rows is None:
            end = end + spans.start
        exact = (columns[START][place] == spans.start) & (end == spans.end)
        if pins < 0:
            exact &= columns[FLAGS][place] & SEAM != 0
            after = np.minimum(place + 1, self.size - 1)
            exact &= (columns[START][after] != end) | (columns[FLAGS][after] & SEAM != 0)
        count = columns[COUNT][place].astype(np.int64) + pins
        if not exact.all() or count.min() <= max(pins, 0) or (columns[FLAGS][place] & flags != flags).any():
            return None
        most = max(int(count.max()), int(columns[WRITERS][place].max()) + writers)
        return None if self._rows is None and most > _NARROWEST else place

    def adjust_all(self, place: Ints, *, pins: int, writers: int) -> None:
        """Count the runs at ``place``, each of them once, up or down in place."""
        columns = self._columns if self._rows is None else self._rows
        for column, by in ((COUNT, pins), (WRITERS, writers)):
            if by > 0:
                columns[column][place] += by
            elif by < 0:
                columns[column][place] -= -by

    def _may_join(self, index: int, flags: NDArray[np.integer]) -> bool:
        """Whether run ``index`` was once one with a neighbour, and may be again."""
        if not int(flags[index]) & SEAM:
            return True
        after = index + 1
        return after < self.size and self.starts[after] == self.end(index) and not int(flags[after]) & SEAM

    def adjust(self, index: int, *, pins: int, writers: int, flags: int) -> bool:
        """See :meth:`RunMap.adjust`."""
        columns = self._columns if self._rows is None else self._rows
        count = int(columns[COUNT][index]) + pins
        writing = int(columns[WRITERS][index]) + writers
        if count <= max(pins, 0) or int(columns[FLAGS][index]) & flags != flags:
            return False
        if pins < 0 and self._may_join(index, columns[FLAGS]):
            return False
        if self._rows is None and max(count, writing) > _NARROWEST:
            return False
        columns[COUNT][index] = count
        columns[WRITERS][index] = writing
        return True
