"""Looking for contents by their hash: once through the trace, in bounded memory, and not for ever."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from server.trace import content_index
from server.trace.content_index import MAX_ROUNDS, ContentIndex


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


class Contents:
    """So many contents, each at a place with its number, and how many were come across."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0

    def scan(self) -> Iterator[tuple[bytes, int]]:
        for number in range(self.count):
            self.seen += 1
            yield digest(number), number


def test_contents_that_are_asked_for_in_order_are_found_in_one_pass() -> None:
    contents = Contents(1000)
    index = ContentIndex(contents.scan)
    assert [index.find(digest(number)) for number in range(1000)] == list(range(1000))
    assert contents.seen == 1000


def test_no_more_is_read_than_is_needed() -> None:
    contents = Contents(1000)
    index = ContentIndex(contents.scan)
    assert index.find(digest(9)) == 9
    assert index.find(digest(3)) == 3
    assert contents.seen == 10


def test_what_is_nowhere_is_looked_for_once() -> None:
    contents = Contents(1000)
    index = ContentIndex(contents.scan)
    assert [index.find(digest(number)) for number in range(2000, 2100)] == [None] * 100
    assert index.find(digest(999)) == 999
    assert contents.seen == 1000


def test_a_digest_that_is_there_twice_is_where_it_was_first() -> None:
    index = ContentIndex(lambda: iter([(b"a", 1), (b"b", 2), (b"a", 3)]))
    assert (index.find(b"b"), index.find(b"c"), index.find(b"a")) == (2, None, 1)


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_index, "MAX_PLACES", 10)


@pytest.mark.usefixtures("_few")
def test_what_has_been_forgotten_is_found_again_in_the_next_round() -> None:
    contents = Contents(100)
    index = ContentIndex(contents.scan)
    assert [index.find(digest(number)) for number in (99, 50, 41, 5)] == [99, 50, 41, 5]
    assert contents.seen == 100 + 51 + (100 - 51) + 6


@pytest.mark.usefixtures("_few")
def test_a_trace_that_makes_work_is_given_up() -> None:
    contents = Contents(100)
    index = ContentIndex(contents.scan)
    for number in range(1000, 1200):
        assert index.find(digest(number)) is None
    assert contents.seen <= 100 * (MAX_ROUNDS + 1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_index, "MAX_PLACES", 1000)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert ContentIndex(Contents(count).scan).find(digest(count - 1)) == count - 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100_000) < peak(5_000) * 1.5
