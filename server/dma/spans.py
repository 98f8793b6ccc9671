"""Ranges of guest addresses as the scatter lists of pins have them."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from devices.contract import GuestMemoryError, GuestRange
from server.dma.address_space import PAGE_SIZE
from server.dma.regions import ADDRESS_SPACE_SIZE

_PAGE_MASK = -PAGE_SIZE

Span = tuple[int, int]
"""Guest addresses ``[start, end)``."""


def spans_of(ranges: Sequence[GuestRange]) -> list[Span]:
    """The ranges as spans, those that follow each other made one. Raises GuestMemoryError."""
    parts: list[Span] = []
    last_start = last_end = -1
    for address, length in ranges:
        if length <= 0 or address < 0:
            raise GuestMemoryError(errno.EINVAL, f"cannot pin {length} bytes at {address:#x}")
        end = address + length
        if end > ADDRESS_SPACE_SIZE:
            raise GuestMemoryError(errno.EOVERFLOW, f"{address:#x}+{length:#x} wraps")
        if address == last_end:
            parts[-1] = (last_start, end)
        else:
            parts.append((address, end))
            last_start = address
        last_end = end
    return parts


def page_spans(parts: list[Span]) -> list[Span]:
    """The spans with their ends moved out to page borders."""
    if any((start | end) % PAGE_SIZE for start, end in parts):
        return [(start & _PAGE_MASK, (end + PAGE_SIZE - 1) & _PAGE_MASK) for start, end in parts]
    return parts


def merge(ordered: Sequence[Span]) -> list[Span]:
    """Sorted spans made disjoint."""
    merged: list[Span] = []
    for start, end in ordered:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
