"""The mapped pages by guest page: runs in a sorted sequence of chunks, kept in 13 to 35 bytes each."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
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
_FEW: Final = 8
"""Up to this many runs are added one by one."""
_NARROWEST: Final = 255
"""What the smallest type of a column holds."""
_TYPECODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
_DTYPES: Final = {"B": np.uint8, "H": np.uint16, "I": np.uint32, "Q": np.uint64}

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

    def cuts(self, spans: Spans) -> int:
        """How many runs more there would be if none reached across a border of ``spans``."""
        total = 0
        for index, part in self._touched(self._fenced(spans)):
            rows = self._chunks[index].rows()  # none of which reaches across a fence
            total += cut(rows, np.concatenate((part.start, part.end))).shape[1] - rows.shape[1]
        return total

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
        """Add pinned runs at pages that are not mapped."""
        new = cut(new, self._fence_array) if len(self._fences) > 1 else new
        for index, _ in reversed(list(self._touched(Spans(new[START], new[END])))):
            part = self._of_chunk(index, new)
            if part.shape[1] <= _FEW and self._chunks[index].size + part.shape[1] <= _CHUNK:
                self._insert_few(index, part)
            else:
                self._replace(index, merged(self._chunks[index].rows(), part))

    def remove(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """Take out the runs that are ``spans``; the DMA page and the number of pages of each.

        The short way for a few ranges that are nobody else's. None, and nothing is changed, where one of them is not
        exactly a run, where more than one pin holds it, or where it might become one run with a neighbour.
        """
        places = [self._exact(start, end) for start, end in spans]
        for place in places:
            if place is None:
                return None
            chunk = self._chunks[place[0]]
            if chunk.value(COUNT, place[1]) != 1 or chunk.may_join(place[1]):
                return None
        removed = []
        for start, end in spans:
            place = self._exact(start, end)
            assert place is not None  # noqa: S101 - it was there a moment ago
            removed.append((self._chunks[place[0]].value(DMA, place[1]), end - start))
            self._chunks[place[0]].remove(place[1])
            if not self._chunks[place[0]].size:
                self._drop_empty(place[0])
        return removed

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

    def _insert_few(self, index: int, few: Rows) -> None:
        for values in few.T.tolist():
            if not self._chunks[index].insert(values):
                one = np.array([values], np.int64).T
                self._replace(index, merged(self._chunks[index].rows(), one))

    def _of_chunk(self, index: int, rows: Rows) -> Rows:
        low = np.searchsorted(rows[START], self._fences[index])
        if index + 1 == len(self._fences):
            return rows[:, low:]
        return rows[:, low : np.searchsorted(rows[START], self._fences[index + 1])]

    def _drop_empty(self, index: int) -> None:
        """Leave the pages of a chunk that has become empty to the one before it."""
        if len(self._chunks) > 1:
            del self._chunks[index]
            del self._fences[index]
            self._fences[0] = 0

    def _replace(self, index: int, rows: Rows) -> None:
        size = rows.shape[1]
        if size <= _CHUNK:
            self._chunks[index] = _Chunk(rows)
            if size == 0:
                self._drop_empty(index)
            return
        parts = np.array_split(np.arange(size), -(-size * 4 // (3 * _CHUNK)))
        self._chunks[index : index + 1] = [_Chunk(rows[:, part]) for part in parts]
        self._fences[index + 1 : index + 1] = [int(rows[START, part[0]]) for part in parts[1:]]


class _Chunk:
    """Some runs in columns, each of the smallest type that holds its numbers.

    One run more or less is a move within each column; many at once go through :meth:`rows`. The number of pages
    stands in the place of END, because it takes fewer bytes.
    """

    __slots__ = ("_columns", "has_idle", "starts")

    def __init__(self, rows: Rows) -> None:
        columns = list(rows)
        columns[END] = rows[END] - rows[START]
        self._columns = [_packed(column) for column in columns]
        self.starts = self._columns[START]
        self.has_idle = bool((rows[COUNT] == 0).any())

    @property
    def size(self) -> int:
        """How many runs there are."""
        return len(self.starts)

    def rows(self) -> Rows:
        """A copy of the runs."""
        rows = np.empty((COLUMNS, self.size), np.int64)
        for row, column in zip(rows, self._columns, strict=True):
            row[:] = _view(column)
        rows[END] += rows[START]
        return rows

    def end(self, index: int) -> int:
        """Where run ``index`` ends."""
        return self._columns[END][index] + self.starts[index]

    def value(self, column: int, index: int) -> int:
        """A number of run ``index``, of any column but END."""
        return self._columns[column][index]

    def insert(self, values: list[int]) -> bool:
        """Add one pinned run; False where its numbers need wider columns."""
        index = bisect_left(self.starts, values[START])
        wanted = values.copy()
        wanted[END] -= values[START]
        done = 0
        try:
            for column, value in zip(self._columns, wanted, strict=True):
                column.insert(index, value)
                done += 1
        except OverflowError:
            for column in self._columns[:done]:
                del column[index]
            return False
        return True

    def remove(self, index: int) -> None:
        """Take one run out."""
        for column in self._columns:
            del column[index]

    def find(self, spans: Spans, *, pins: int, writers: int, flags: int) -> Ints | None:
        """Where the runs are that ``spans`` are, if :meth:`adjust_all` can change them all; else None."""
        if not self.size or spans.start[-1] > self.starts[-1]:
            return None
        start, pages, _, count, writing, marks, _ = map(_view, self._columns)
        place = np.searchsorted(start, spans.start)
        exact = (start[place] == spans.start) & (pages[place] == spans.end - spans.start)
        if pins < 0:
            exact &= marks[place] & SEAM != 0
            after = np.minimum(place + 1, self.size - 1)
            exact &= (start[after] != spans.end) | (marks[after] & SEAM != 0)
        counts = count[place].astype(np.int64) + pins
        if not exact.all() or counts.min() <= max(pins, 0) or (marks[place] & flags != flags).any():
            return None
        most = max(int(counts.max()), int(writing[place].max()) + writers)
        return None if most > _NARROWEST else place

    def adjust_all(self, place: Ints, *, pins: int, writers: int) -> None:
        """Count the runs at ``place``, each of them once, up or down in place."""
        for column, by in ((COUNT, pins), (WRITERS, writers)):
            numbers = _view(self._columns[column])
            if by > 0:
                numbers[place] += by
            elif by < 0:
                numbers[place] -= -by

    def adjust(self, index: int, *, pins: int, writers: int, flags: int) -> bool:
        """See :meth:`RunMap.adjust`."""
        columns = self._columns
        count = columns[COUNT][index] + pins
        writing = columns[WRITERS][index] + writers
        if (
            count <= max(pins, 0)
            or columns[FLAGS][index] & flags != flags
            or max(count, writing) > _NARROWEST
        ):
            return False
        if pins < 0 and self.may_join(index):
            return False
        columns[COUNT][index] = count
        columns[WRITERS][index] = writing
        return True

    def may_join(self, index: int) -> bool:
        """Whether run ``index`` was once one with a neighbour, and may be again."""
        flags = self._columns[FLAGS]
        if not flags[index] & SEAM:
            return True
        after = index + 1
        return after < self.size and self.starts[after] == self.end(index) and not flags[after] & SEAM


def _packed(column: Ints) -> array[int]:
    narrow = narrowed(column)
    packed = array(_TYPECODES[narrow.itemsize])
    packed.frombytes(narrow.tobytes())
    return packed


def _view(column: array[int]) -> NDArray[np.unsignedinteger]:
    """The numbers in place: to be let go of before one is added or taken out."""
    return np.frombuffer(column, _DTYPES[column.typecode])
