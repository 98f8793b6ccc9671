"""Scatter lists: what is refused, and how pages and bytes come out of ranges."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.contract import GuestMemoryError, GuestRange
from server.dma.address_space import PAGE_SIZE
from server.dma.scatter import ScatterList

TOP = 1 << 64

ADDRESSES = st.integers(0, 40 * PAGE_SIZE) | st.integers(TOP - 40 * PAGE_SIZE, TOP - 1)
RANGES = st.builds(
    lambda start, length: GuestRange(start, min(length, TOP - start)),
    ADDRESSES,
    st.integers(1, 5 * PAGE_SIZE),
)


@given(st.lists(RANGES, max_size=12))
def test_a_list_has_the_bytes_and_the_pages_of_its_ranges(ranges: list[GuestRange]) -> None:
    scatter = ScatterList(ranges)
    assert scatter.length == sum(length for _, length in ranges)
    position = 0
    at = [address + offset for address, length in ranges for offset in (0, length - 1)]
    for start, end in scatter.ranges():
        while position < len(at) and start <= at[position] < end:
            position += 1
    assert position == len(at)
    spans, part = scatter.spans()
    pages = [page for start, end in zip(*spans, strict=True) for page in range(start, end)]
    assert pages == sorted(
        {
            page
            for start, length in ranges
            for page in range(start // PAGE_SIZE, -(-(start + length) // PAGE_SIZE))
        }
    )
    parts = scatter.parts
    origin = range(len(spans.start)) if part is None else part.tolist()
    for start, end, number in zip(*spans, origin, strict=True):
        assert parts.start[number] <= start < end <= parts.end[number]


def test_ranges_that_follow_each_other_are_one_part() -> None:
    assert ScatterList([GuestRange(0, 10), GuestRange(10, 20), GuestRange(40, 5)]).ranges() == [
        (0, 30),
        (40, 45),
    ]


def test_the_end_of_the_address_space_is_not_followed_by_its_start() -> None:
    assert ScatterList([GuestRange(TOP - 8, 8), GuestRange(0, 8)]).ranges() == [(TOP - 8, TOP), (0, 8)]


@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (GuestRange(0, 0), errno.EINVAL),
        (GuestRange(PAGE_SIZE, -1), errno.EINVAL),
        (GuestRange(-PAGE_SIZE, PAGE_SIZE), errno.EINVAL),
        (GuestRange(TOP - 1, 2), errno.EOVERFLOW),
        (GuestRange(TOP, 1), errno.EOVERFLOW),
        (GuestRange(1, TOP), errno.EOVERFLOW),
        (GuestRange(0, TOP + 1), errno.EOVERFLOW),
    ],
)
def test_a_range_that_cannot_be_is_refused(others: int, bad: GuestRange, expected: int) -> None:
    with pytest.raises(GuestMemoryError) as caught:
        ScatterList([GuestRange(0, PAGE_SIZE)] * others + [bad])
    assert caught.value.errno == expected


def test_an_empty_list_has_nothing() -> None:
    scatter = ScatterList([])
    assert (scatter.length, scatter.ranges(), scatter.spans()[0].pages) == (0, [], 0)
