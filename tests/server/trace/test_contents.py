"""What is new in memory that is looked at in place: nothing is missed, and versions mean what devices rely on."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.trace import contents
from server.trace.contents import Copies

PAGE = 4096
SMALL = 16
"""A chunk of the tests that make up many accesses."""
GUEST = 48 * SMALL
Ranges = list[tuple[int, int]]


class Pins:
    """What a copy is of, as far as it matters here."""


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "CHUNK", SMALL)
        patch.setattr(contents, "BLOCKS", (16 * SMALL, 4 * SMALL, SMALL))
        yield


@pytest.fixture
def _pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK", PAGE)
    monkeypatch.setattr(contents, "BLOCKS", (128 * PAGE, 16 * PAGE, PAGE))


class Found(NamedTuple):
    """As News, to be kept."""

    version: int
    spans: Sequence[tuple[int, int]]
    pieces: list[tuple[int, bytes]]


class Guest:
    """A guest's memory; and what somebody knows of it who has only the pieces of the looks."""

    def __init__(self, ranges: Ranges, size: int = GUEST) -> None:
        self.memory = bytearray(size)
        self.known = bytearray(b"\xee" * size)
        self.ranges = ranges
        self.pins = Pins()
        self.history: dict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)

    def views(self, offset: int, length: int, memory: bytearray | None = None) -> list[memoryview]:
        whole = memoryview(self.memory if memory is None else memory).toreadonly()
        views = []
        for start, end in self.ranges:
            size = end - start
            first, last = max(offset, 0), min(offset + length, size)
            if first < last:
                views.append(whole[start + first : start + last])
            offset -= size
        return views or [memoryview(b"")]

    def look(self, copies: Copies, offset: int, length: int) -> Found:
        """Look at a part, and check what was found against all that was seen of it before."""
        views = self.views(offset, length)
        news = copies.look(self.pins, self.ranges, offset, views)
        now = b"".join(views)
        pieces = [(address, bytes(data)) for address, data in news.pieces]
        for address, data in pieces:
            assert any(start <= address and address + len(data) <= end for start, end in self.ranges)
            self.known[address : address + len(data)] = data
        assert b"".join(self.views(offset, length, self.known)) == now
        seen = self.history[offset, length]
        assert seen.setdefault(news.version, now) == now
        if news.version - 1 in seen:
            before = bytearray(seen[news.version - 1])
            for start, size in news.spans:
                assert 0 <= start < start + size <= length
                before[start : start + size] = now[start : start + size]
            assert before == now
        return Found(news.version, news.spans, pieces)


@st.composite
def ranges_in(draw: st.DrawFn, size: int = GUEST, unit: int = SMALL) -> Ranges:
    """Parts of a guest's memory, aligned or not, in any order; they may overlap, and meet."""
    step = draw(st.sampled_from([1, unit // 4, unit]))
    ranges = []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, size // step - 1))
        ranges.append((start * step, draw(st.integers(start + 1, size // step)) * step))
    return ranges


@st.composite
def parts_of(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """A few parts of what is pinned: all of it, and some that begin and end anywhere."""
    parts = [(0, length)]
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, length))
        parts.append((start, draw(st.integers(0, length - start))))
    return parts


changes = st.lists(st.tuples(st.integers(0, GUEST - 1), st.integers(1, 40), st.integers(0, 3)), max_size=3)
steps = st.lists(st.tuples(changes, st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=12)


@given(ranges_in(), st.data(), steps)
def test_who_has_the_pieces_of_all_looks_knows_what_was_looked_at(
    ranges: Ranges, data: st.DataObject, steps: list[tuple[list[tuple[int, int, int]], int, int]]
) -> None:
    guest, copies = Guest(ranges), Copies()
    parts = data.draw(parts_of(sum(end - start for start, end in ranges)))
    for changed, part, chance in steps:
        for at, size, value in changed:
            guest.memory[at : at + size] = bytes([value]) * len(guest.memory[at : at + size])
        if chance == 0:
            copies.forget()
            guest.known[:] = b"\xee" * GUEST
        guest.look(copies, *parts[part % len(parts)])


def test_what_has_not_changed_is_not_recorded_again() -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    first = guest.look(copies, 0, GUEST)
    assert sum(len(data) for _, data in first.pieces) == GUEST
    assert all(len(data) == SMALL for _, data in first.pieces)
    again = guest.look(copies, 0, GUEST)
    assert (again.version, again.pieces) == (first.version, [])


def test_of_a_chunk_that_is_known_only_what_has_changed_is_recorded() -> None:
    guest, copies = Guest([(5 * SMALL, 20 * SMALL), (0, 4 * SMALL)]), Copies()
    guest.look(copies, 0, 19 * SMALL)
    guest.memory[7 * SMALL + 3] = guest.memory[7 * SMALL + 6] = 1
    guest.memory[SMALL - 1] = guest.memory[SMALL] = 2
    news = guest.look(copies, 0, 19 * SMALL)
    assert news.pieces == [(7 * SMALL + 3, b"\1\0\0\1"), (SMALL - 1, b"\2"), (SMALL, b"\2")]
    assert news.spans == [(2 * SMALL + 3, 4), (16 * SMALL - 1, 2)]


def test_the_same_views_are_looked_at_again_behind_others_too() -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    whole, right = guest.views(0, GUEST), guest.views(4 * SMALL, GUEST - 4 * SMALL)
    looks = [(0, whole), (0, whole), (4 * SMALL, right), (4 * SMALL, right), (0, whole)]
    for number, (offset, views) in enumerate(looks):
        guest.memory[7 * SMALL] = number + 1
        news = copies.look(guest.pins, guest.ranges, offset, views)
        pieces = [(address, bytes(data)) for address, data in news.pieces]
        if number:
            assert pieces == [(7 * SMALL, bytes([number + 1]))]
            assert news.spans == [(7 * SMALL - offset, 1)]


def test_what_was_never_looked_at_is_new_behind_what_was() -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    guest.look(copies, 0, SMALL)
    assert guest.look(copies, SMALL // 2, 2 * SMALL).pieces == [
        (SMALL, bytes(SMALL)),
        (2 * SMALL, bytes(SMALL // 2)),
    ]


def test_what_was_forgotten_is_new() -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    first = guest.look(copies, 0, GUEST)
    copies.forget()
    again = guest.look(copies, 0, GUEST)
    assert again.pieces == first.pieces
    assert guest.look(copies, 0, GUEST).pieces == []


def test_a_change_that_another_look_found_is_a_change_for_who_had_not_seen_it() -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    left, right = (0, 8 * SMALL), (4 * SMALL, 8 * SMALL)
    guest.look(copies, *right)
    before = guest.look(copies, *left)
    guest.memory[5 * SMALL] = 1
    found = guest.look(copies, *right)
    news = guest.look(copies, *left)
    assert found.version == news.version == before.version + 1
    assert (news.pieces, news.spans) == ([], [(5 * SMALL, 1)])


def test_a_change_that_the_guest_takes_back_during_the_look_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    first = guest.look(copies, 0, GUEST)
    memcmp = contents._memcmp

    def compare(a: int, b: int, size: int) -> int:
        differs = memcmp(a, b, size)
        if size == SMALL and differs:
            guest.memory[100] = 0
        return int(differs)

    guest.memory[100] = 1
    monkeypatch.setattr(contents, "_memcmp", compare)
    news = guest.look(copies, 0, GUEST)
    assert guest.memory[100] == 0
    assert (news.version, news.pieces) == (first.version, [])


def test_an_empty_part_has_nothing_new() -> None:
    guest, copies = Guest([(0, GUEST)]), Copies()
    for offset in (0, 7, GUEST):
        assert guest.look(copies, offset, 0).pieces == []


def test_versions_of_different_pins_and_sessions_are_different() -> None:
    versions = set()
    for _ in range(3):
        copies = Copies()
        for _ in range(3):
            guest = Guest([(0, GUEST)])
            versions |= {guest.look(copies, 0, GUEST).version}
            guest.memory[0] += 1
            versions |= {guest.look(copies, 0, GUEST).version}
    assert len(versions) == 18


def test_copies_of_pins_that_are_gone_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_COPIES", GUEST + SMALL)
    copies = Copies()
    first, second = Guest([(0, GUEST)]), Guest([(0, GUEST)])
    first.look(copies, 0, GUEST)
    assert second.look(copies, 0, GUEST).version != second.look(copies, 0, GUEST).version
    del first
    gc.collect()
    second.look(copies, 0, GUEST)
    assert second.look(copies, 0, GUEST).pieces == []


@given(ranges_in(), st.data())
@example([(3, GUEST - 5)], None)
def test_what_is_not_copied_is_all_new_at_each_look(ranges: Ranges, data: st.DataObject | None) -> None:
    length = sum(end - start for start, end in ranges)
    parts = [(0, length)] if data is None else data.draw(parts_of(length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "MAX_COPIES", 10)
        guest, copies = Guest(ranges), Copies()
        guest.memory[:] = os.urandom(GUEST)
        versions = []
        for offset, size in parts * 2:
            news = guest.look(copies, offset, size)
            if length > 10:
                assert b"".join(piece for _, piece in news.pieces) == b"".join(guest.views(offset, size))
                assert all(len(piece) <= SMALL for _, piece in news.pieces)
                versions.append(news.version)
    assert all(abs(one - other) > 1 for one in versions for other in versions if one is not other)


@pytest.mark.usefixtures("_pages")
def test_memory_that_is_too_much_to_be_copied_is_not_reserved() -> None:
    memory = bytes(PAGE)
    ranges = [(0, PAGE)] * 4
    huge = [(0, 1 << 50)]
    copies = Copies()
    tracemalloc.start()
    try:
        copies.look(Pins(), huge, 1 << 40, [memoryview(memory)])
        pins = [Pins() for _ in range(100)]
        for pin in pins:
            copies.look(pin, ranges, 0, [memoryview(memory)] * 4)
        assert tracemalloc.get_traced_memory()[1] < 100 * 20 * PAGE
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("_pages")
def test_pages_that_begin_on_a_page_border_are_recorded_as_pages() -> None:
    size = 300 * PAGE
    guest, copies = Guest([(0, size)], size), Copies()
    guest.memory[:] = os.urandom(size)
    news = guest.look(copies, 0, size)
    assert [(address, len(data)) for address, data in news.pieces] == [
        (at, PAGE) for at in range(0, size, PAGE)
    ]
    guest.memory[200 * PAGE + 9] ^= 1
    assert guest.look(copies, 0, size).spans == [(200 * PAGE + 9, 1)]
