"""What a holder of pinned pages has in hand."""

from __future__ import annotations

import errno
import sys
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol, Self

import numpy as np

from devices.contract import DmaSegment, GuestMemoryError, Look, OnUnmap, Prot
from server.dma.address_space import PAGE_SHIFT
from server.dma.run_rows import DMA, END, START, Rows, clipped, coalesced
from server.dma.scatter import ScatterList
from server.dma.spans import Ints, count_overlapping

_HERE = str(Path(__file__).parent)
_OFFSET = (1 << PAGE_SHIFT) - 1
_SURPLUS_PIECES = 1 << 18
"""Pieces that a list may have beyond one for each of its parts and of its pages' runs."""


class PinOwner(Protocol):
    """What a :class:`Pin` needs of the cache that made it."""

    def release(self, pin: Pin) -> None:
        """Drop the references of ``pin``."""

    def leaked(self, pin: Pin) -> None:
        """``pin`` was dropped without having been released."""

    def lookup(self, pin: Pin) -> Rows:
        """Where its pages are in the domain, by guest page."""

    def views(self, pin: Pin) -> Sequence[memoryview]:
        """The pinned memory in place."""


class _Translation(NamedTuple):
    """Where pages are: those from ``start[i]`` to ``end[i]`` are ``delta[i]`` pages further in the domain."""

    start: Ints
    end: Ints
    delta: Ints
    scalars: tuple[memoryview, memoryview, memoryview]
    """The same again, as what gives Python's own integers: quicker for one address."""


class Pin:
    """A pinned scatter list (:class:`devices.contract.PinnedPages`); also a context manager that releases it.

    A Pin that is dropped while it holds pages is a leak: it is logged with where it was made, and released.
    """

    __slots__ = (
        "__weakref__",
        "_cache",
        "_segments",
        "_translation",
        "_views",
        "dropped",
        "on_unmap",
        "origin",
        "prot",
        "revoked",
        "scatter",
    )

    def __init__(self, cache: PinOwner, scatter: ScatterList, prot: Prot, on_unmap: OnUnmap) -> None:
        self._cache = cache
        self._segments: Sequence[DmaSegment] | None = None
        self._translation: _Translation | None = None
        self._views: Sequence[memoryview] | None = None
        self.dropped = False
        """Nobody holds it any more, although it was not released."""
        self.on_unmap = on_unmap
        self.origin = _caller()
        self.prot = prot
        self.revoked = False
        self.scatter = scatter

    @property
    def length(self) -> int:
        """Bytes in all ranges together."""
        return self.scatter.length

    @property
    def segments(self) -> Sequence[DmaSegment]:
        """The DMA segments, coalesced.

        Raises GuestMemoryError: EINVAL once revoked, ENOMEM for a list that names scattered memory over and over.
        """
        self._check()
        if self._segments is None:
            self._segments = _segments(self.scatter, self._cache.lookup(self))
        return self._segments

    def dma_addr(self, address: int) -> int:
        """The dma_addr of a guest address in the pinned pages. Raises GuestMemoryError (EINVAL)."""
        table = self._translation or self._translate()
        start, end, delta = table.scalars
        page = address >> PAGE_SHIFT
        index = bisect_right(start, page) - 1
        if index < 0 or page >= end[index]:
            raise _not_pinned(address)
        addr: int = address + (delta[index] << PAGE_SHIFT)
        return addr

    def dma_addrs(self, addresses: Sequence[int]) -> Sequence[int]:
        """The dma_addrs of many guest addresses at once. Raises GuestMemoryError (EINVAL)."""
        table = self._translation or self._translate()
        try:
            wanted = np.asarray(addresses, np.uint64)
        except OverflowError:
            raise _not_pinned(next(one for one in addresses if not 0 <= one < 1 << 64)) from None
        pages = (wanted >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        if not len(table.start) and len(pages):
            raise _not_pinned(int(wanted[0]))
        index = np.searchsorted(table.start, pages, "right") - 1
        outside = (index < 0) | (pages >= table.end[index])
        if outside.any():
            raise _not_pinned(int(wanted[outside][0]))
        offset = (wanted & np.uint64(_OFFSET)).astype(np.int64)
        return ((pages + table.delta[index] << PAGE_SHIFT) + offset).data

    def views(self) -> Sequence[memoryview]:
        """The memory in order, in one piece where ranges meet on page borders and the domain has views at all.

        Raises GuestMemoryError (EINVAL) once revoked.
        """
        self._check()
        if self._views is None:
            views = self._cache.views(self)
            self._views = tuple(views if self.prot & Prot.WRITE else (view.toreadonly() for view in views))
        return self._views

    def look(self, offset: int, length: int) -> Look:
        """A part of the memory in place, of unknown version. Raises GuestMemoryError (EINVAL) once revoked."""
        return Look(part_of(self.views(), offset, length))

    def release(self) -> None:
        """Drop one reference per page. Calling it again does nothing."""
        if not self.revoked:
            self._cache.release(self)

    def revoke(self) -> None:
        """The pages are no longer this handle's: it raises an error from now on."""
        self.revoked = True
        self._views = self._segments = self._translation = None

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of the pages is one of ``[start, end)`` (page numbers)."""
        if self.scatter.first >= end or self.scatter.end <= start:
            return False
        parts = self.scatter.parts
        return len(parts.start) == 1 or bool(((parts.start < end) & (parts.end > start)).any())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __del__(self) -> None:
        if not getattr(self, "revoked", True):
            self.dropped = True
            self._cache.leaked(self)

    def _check(self) -> None:
        if self.revoked:
            raise GuestMemoryError(errno.EINVAL, "these pages are no longer pinned")

    def _translate(self) -> _Translation:
        self._check()
        rows = self._cache.lookup(self)
        start, end, delta = rows[START].copy(), rows[END].copy(), rows[DMA] - rows[START]
        self._translation = _Translation(start, end, delta, (start.data, end.data, delta.data))
        return self._translation


def part_of(views: Sequence[memoryview], offset: int, length: int) -> Sequence[memoryview]:
    """``length`` bytes from ``offset`` of views that follow each other."""
    if len(views) == 1:
        return (views[0][offset : offset + length],)
    parts: list[memoryview] = []
    for view in views:
        if not length:
            break
        if offset < len(view):
            part = view[offset : offset + length]
            parts.append(part)
            length -= len(part)
            offset = 0
        else:
            offset -= len(view)
    return parts


def _segments(scatter: ScatterList, rows: Rows) -> list[DmaSegment]:
    """The list's DMA segments, where ``rows`` are its pages in the domain."""
    parts = scatter.parts
    pieces = count_overlapping(rows[START], rows[END], parts)
    if pieces > _SURPLUS_PIECES + 2 * (len(scatter) + rows.shape[1]):
        # A list may name the same scattered memory as often as its maker likes.
        raise GuestMemoryError(
            errno.ENOMEM, f"a scatter list of {pieces} pieces, most of them many times over"
        )
    found, part = clipped(rows, parts)
    dma_addr = found[DMA] << PAGE_SHIFT
    length = found[END] - found[START] << PAGE_SHIFT
    head, tail = scatter.head, scatter.tail
    if head is not None and tail is not None:
        border = part[1:] != part[:-1]
        begins, ends = np.append(True, border), np.append(border, True)
        dma_addr[begins] += head
        length[begins] -= head
        length[ends] -= tail
    return coalesced(dma_addr, length)


def _not_pinned(address: int) -> GuestMemoryError:
    return GuestMemoryError(errno.EINVAL, f"guest address {address:#x} is not part of this pin")


def _caller() -> str:
    """The first frame outside this package, as file:line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"
