"""What is still to be read, against a count for each byte."""

from __future__ import annotations

import random
from collections import Counter

from server.trace.replay.unread import Unread

SPACE = 64


def test_it_is_a_count_for_each_byte() -> None:
    dice = random.Random(5)  # noqa: S311 - the same each time
    for _ in range(200):
        unread, counts = Unread(), Counter[int]()
        for _ in range(60):
            start = dice.randrange(SPACE)
            end = start + dice.randrange(1, 12)
            if dice.random() < 0.5:
                unread.add(start, end)
                counts.update(range(start, end))
            else:
                unread.read(start, end)
                counts.subtract(place for place in range(start, end) if counts[place])
            left = sorted(place for place, count in counts.items() if count)
            assert bool(unread) is bool(left)
            if left:
                assert unread.first == left[0]
            begin = dice.randrange(SPACE)
            stop = begin + dice.randrange(1, 12)
            assert unread.has(begin, stop) is any(counts[place] for place in range(begin, stop))


def test_many_ranges_that_nobody_reads_are_looked_through_quickly() -> None:
    unread = Unread()
    for number in range(100_000):  # seconds, where each looks at all others: minutes
        unread.add(16 * number, 16 * number + 8)
    assert unread.has(16 * 99_999, 16 * 99_999 + 1)
    assert not unread.has(16 * 99_999 + 8, 16 * 99_999 + 16)
