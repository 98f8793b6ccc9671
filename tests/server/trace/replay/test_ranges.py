"""Ranges of addresses, which are as few as they can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.trace.replay.ranges import Ranges

places = st.integers(0, 30)


@given(st.lists(st.tuples(st.booleans(), places, places), max_size=20), places, st.integers(1, 10))
def test_what_was_added_is_covered_until_it_is_removed(
    steps: list[tuple[bool, int, int]], start: int, length: int
) -> None:
    ranges, model = Ranges(), set[int]()
    for add, first, last in steps:
        if add:
            ranges.add(first, last)
            model.update(range(first, last))
        else:
            ranges.remove(first, last)
            model.difference_update(range(first, last))
    assert ranges.covers(start, start + length) == model.issuperset(range(start, start + length))
    assert len(ranges) == sum(one - 1 not in model for one in model)
    ranges.clear()
    assert not ranges
    assert not ranges.covers(start, start + length)
