from __future__ import annotations

import errno

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.dma.address_space import PAGE_SIZE
from server.dma.domains.iova import IovaAllocator
from server.dma.errors import DmaError

START = PAGE_SIZE
PAGES = 64


class AllocatorModel(RuleBasedStateMachine):
    """The allocator against a set of page numbers in use."""

    def __init__(self) -> None:
        super().__init__()
        self.iovas = IovaAllocator(START, PAGES * PAGE_SIZE)
        self.ranges: list[tuple[int, int]] = []

    @rule(pages=st.integers(1, PAGES), shift=st.integers(0, 3))
    def alloc(self, pages: int, shift: int) -> None:
        length, align = pages * PAGE_SIZE, PAGE_SIZE << shift
        try:
            iova = self.iovas.alloc(length, align)
        except DmaError:
            assert not self._fits(length + align - PAGE_SIZE)
            return
        assert iova % align == 0
        assert iova >= START
        assert iova + length <= START + PAGES * PAGE_SIZE
        assert all(iova + length <= start or end <= iova for start, end in self.ranges)
        self.ranges.append((iova, iova + length))

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def free_a_part(self, data: st.DataObject) -> None:
        start, end = self.ranges.pop(data.draw(st.integers(0, len(self.ranges) - 1)))
        low = data.draw(st.integers(start // PAGE_SIZE, end // PAGE_SIZE - 1)) * PAGE_SIZE
        high = data.draw(st.integers(low // PAGE_SIZE + 1, end // PAGE_SIZE)) * PAGE_SIZE
        self.iovas.free(low, high - low)
        self.ranges += [part for part in ((start, low), (high, end)) if part[0] < part[1]]

    @invariant()
    def free_space_is_what_nobody_has_in_as_few_holes_as_possible(self) -> None:
        used = sum(end - start for start, end in self.ranges)
        assert self.iovas.free_bytes == PAGES * PAGE_SIZE - used
        assert self.iovas.holes == len(self._holes())

    def _holes(self) -> list[int]:
        holes, cursor = [], START
        for start, end in [*sorted(self.ranges), (START + PAGES * PAGE_SIZE, 0)]:
            if start > cursor:
                holes.append(start - cursor)
            cursor = end
        return holes

    def _fits(self, length: int) -> bool:
        return any(hole >= length for hole in self._holes())


TestAllocatorModel = AllocatorModel.TestCase


def test_the_smallest_hole_that_fits_is_used() -> None:
    iovas = IovaAllocator(START, PAGES * PAGE_SIZE)
    ranges = [iovas.alloc(length * PAGE_SIZE) for length in (4, 1, 2, 1, 3, 1)]
    iovas.free(ranges[0], 4 * PAGE_SIZE)
    iovas.free(ranges[2], 2 * PAGE_SIZE)
    iovas.free(ranges[4], 3 * PAGE_SIZE)
    assert iovas.alloc(2 * PAGE_SIZE) == ranges[2]
    assert iovas.alloc(3 * PAGE_SIZE) == ranges[4]


def test_a_range_larger_than_any_hole_is_out_of_memory() -> None:
    iovas = IovaAllocator(START, 2 * PAGE_SIZE)
    with pytest.raises(DmaError) as caught:
        iovas.alloc(3 * PAGE_SIZE)
    assert caught.value.errno == errno.ENOMEM


def test_ranges_with_something_reserved_between_them_never_become_one() -> None:
    iovas = IovaAllocator(START, 3 * PAGE_SIZE)
    iovas.add(START + 4 * PAGE_SIZE, 4 * PAGE_SIZE)
    with pytest.raises(DmaError):
        iovas.alloc(5 * PAGE_SIZE)
    ranges = [iovas.alloc(length * PAGE_SIZE) for length in (3, 4)]
    assert ranges == [START, START + 4 * PAGE_SIZE]
    iovas.free(ranges[0], 3 * PAGE_SIZE)
    iovas.free(ranges[1], 4 * PAGE_SIZE)
    assert (iovas.holes, iovas.free_bytes) == (2, 7 * PAGE_SIZE)
