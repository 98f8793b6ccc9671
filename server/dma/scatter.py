"""A scatter list of guest memory: ranges of any alignment in any order, checked and kept in a few bytes each."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from devices.contract import GuestMemoryError, GuestRange
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.regions import ADDRESS_SPACE_SIZE
from server.dma.spans import Ints, Spans, narrowed

_FEW: Final = 8
_OFFSET = np.uint64(PAGE_SIZE - 1)
_SHIFT = np.uint64(PAGE_SHIFT)
_ONE = np.uint64(1)
_PAGES = ADDRESS_SPACE_SIZE >> PAGE_SHIFT
_LAST_BYTE = np.uint64(ADDRESS_SPACE_SIZE - 1)


class ScatterList:
    """The parts of a list: its ranges in order, those that follow each other made one.

    Part ``i`` lies in the pages ``[first[i], end[i])``; ``head[i]`` bytes of the first page and ``tail[i]``
    of the last are not part of it. :attr:`first` and :attr:`end` bound the pages of all parts together. Costs 5
    bytes per part where pages have numbers of 32 bits, and 4 more where any end is not on a page border.
    """

    __slots__ = ("_first", "_head", "_pages", "_tail", "ascending", "end", "few", "first", "length")

    def __init__(self, ranges: Sequence[GuestRange]) -> None:
        """Raises GuestMemoryError. EINVAL: an empty or negative range. EOVERFLOW: one that wraps."""
        self.few: tuple[tuple[int, int], ...] | None = None
        """The pages of each part as pairs, where there are only a few."""
        if 0 < len(ranges) <= _FEW:
            self._init_few(ranges)
            return
        address, last = _parts(*_checked(ranges))
        self.length: int = sum((last - address).tolist()) + len(address)
        first = (address >> _SHIFT).astype(np.int64)
        end = (last >> _SHIFT).astype(np.int64) + 1
        self.first = int(first.min(initial=_PAGES))
        """The first page of all."""
        self.end = int(end.max(initial=0))
        """Behind the last page of all."""
        self.ascending = bool((first[1:] >= end[:-1]).all())
        self._first = narrowed(first)
        self._pages = narrowed(end - first)
        head, tail = address & _OFFSET, _OFFSET - (last & _OFFSET)
        aligned = not (head.any() or tail.any())
        self._head = None if aligned else head.astype(np.uint16)
        self._tail = None if aligned else tail.astype(np.uint16)

    def _init_few(self, ranges: Sequence[GuestRange]) -> None:
        """The same for a short list, for which setting arrays to work takes longer than going through it."""
        parts: list[tuple[int, int]] = []
        for address, length in ranges:
            end = address + length
            if length <= 0 or address < 0 or end > ADDRESS_SPACE_SIZE:
                raise _bad_range(ranges)
            if parts and parts[-1][1] == address:
                parts[-1] = (parts[-1][0], end)
            else:
                parts.append((address, end))
        self.few = tuple((start >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT) for start, end in parts)
        self.length = sum(length for _, length in ranges)
        self.first = min(first for first, _ in self.few)
        self.end = max(end for _, end in self.few)
        self.ascending = all(before[1] <= after[0] for before, after in pairwise(self.few))
        first, end_page = np.array(self.few, np.int64).T
        self._first, self._pages = first, end_page - first
        aligned = not any((start | end) % PAGE_SIZE for start, end in parts)
        self._head = None if aligned else np.array([start % PAGE_SIZE for start, _ in parts], np.uint16)
        self._tail = None if aligned else np.array([-end % PAGE_SIZE for _, end in parts], np.uint16)

    def __len__(self) -> int:
        return len(self._first)

    @property
    def parts(self) -> Spans:
        """The pages of each part, in the order of the list: not ascending, and they may overlap."""
        first = self._first.astype(np.int64, copy=False)
        return Spans(first, first + self._pages)

    @property
    def head(self) -> Ints | None:
        """Bytes of each part's first page in front of it; None where they all are 0."""
        return None if self._head is None else self._head.astype(np.int64)

    @property
    def tail(self) -> Ints | None:
        """Bytes of each part's last page behind it; None where they all are 0."""
        return None if self._tail is None else self._tail.astype(np.int64)

    @property
    def is_whole_pages_inside(self) -> bool:
        """Whether parts meet on page borders: all but the first begin on one, all but the last end on one."""
        if self._head is None or self._tail is None:
            return True
        return not (self._head[1:].any() or self._tail[:-1].any())

    @property
    def repeats(self) -> bool:
        """Whether the list names a page more than once."""
        return not self.ascending and self.parts.pages > self.spans()[0].pages

    def spans(self) -> tuple[Spans, Ints | None]:
        """Every page once, in ascending order, and the part that each span is from.

        The second is None where span ``i`` is part ``i``. A page of several parts is the first one's by address.
        """
        parts = self.parts
        if self.ascending:
            return parts, None
        order = np.argsort(parts.start, kind="stable")
        start, end = parts.start[order], parts.end[order]
        start[1:] = np.maximum(start[1:], np.maximum.accumulate(end)[:-1])
        some = start < end
        return Spans(start[some], end[some]), order[some]

    def ranges(self) -> list[tuple[int, int]]:
        """The parts as pairs of guest addresses, start and end."""
        parts = self.parts
        none = [0] * len(self)
        return [
            ((first << PAGE_SHIFT) + head, (end << PAGE_SHIFT) - tail)
            for first, end, head, tail in zip(
                parts.start.tolist(),
                parts.end.tolist(),
                none if self._head is None else self._head.tolist(),
                none if self._tail is None else self._tail.tolist(),
                strict=True,
            )
        ]


def _checked(ranges: Sequence[GuestRange]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first and the last byte of each range."""
    try:
        numbers = np.fromiter(chain.from_iterable(ranges), np.uint64, 2 * len(ranges))
    except OverflowError:
        raise _bad_range(ranges) from None
    address, length = numbers[::2], numbers[1::2]
    last = address + (length - _ONE)
    if not length.all() or (last < address).any():
        raise _bad_range(ranges)
    return address, last


def _bad_range(ranges: Sequence[GuestRange]) -> GuestMemoryError:
    for address, length in ranges:
        if length <= 0 or address < 0:
            return GuestMemoryError(errno.EINVAL, f"cannot pin {length} bytes at {address:#x}")
        if address + length > ADDRESS_SPACE_SIZE:
            return GuestMemoryError(errno.EOVERFLOW, f"{address:#x}+{length:#x} wraps")
    return GuestMemoryError(errno.EINVAL, "a scatter list that changes while it is read")


def _parts(
    address: NDArray[np.uint64], last: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The ranges with those that follow each other made one."""
    follows = (address[1:] == last[:-1] + _ONE) & (last[:-1] != _LAST_BYTE)
    if not follows.any():
        return address, last
    return address[np.append(True, ~follows)], last[np.append(~follows, True)]
