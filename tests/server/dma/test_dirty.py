"""The dirty log against a set of pages."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dma.address_space import PAGE_SIZE
from server.dma.dirty import MAX_CHUNKS, DirtyLog
from server.dma.errors import DmaError
from server.dma.spans import Spans
from tests.server.dma.support import Client

NOTHING = Spans(np.empty(0, np.int64), np.empty(0, np.int64))
MEMORY = 48 * PAGE_SIZE
FAR = (1 << 15) * PAGE_SIZE  # where one bitmap ends and the next begins
TOP = 1 << 64

PAGE_SIZES = st.sampled_from([512, 2048, PAGE_SIZE, 2 * PAGE_SIZE, 1 << 16, 1 << 21])
PLACES = st.builds(
    lambda base, offset: base + offset,
    st.sampled_from([0, FAR - MEMORY // 2, TOP - MEMORY]),
    st.integers(0, MEMORY - 1),
)
RANGES = st.builds(
    lambda start, length: (start, min(length, TOP - start)), PLACES, st.integers(1, 20 * PAGE_SIZE)
)


@pytest.fixture
def log() -> DirtyLog:
    def overflow() -> None:
        raise AssertionError("the log does not overflow")

    log = DirtyLog(overflow)
    log.start()
    return log


def units(bitmap: bytes) -> set[int]:
    """The numbers of the bits that are set: bit 0 of byte 0 is the first (linux/vfio.h: a bitmap of u64)."""
    return {8 * index + bit for index, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


def refusal(ask: Callable[[], object]) -> int | None:
    with pytest.raises(DmaError) as caught:
        ask()
    return caught.value.errno


def pages_in(start: int, length: int) -> set[int]:
    return set(range(start // PAGE_SIZE, -(-(start + length) // PAGE_SIZE)))


@settings(max_examples=150, deadline=None)
@given(
    tracked=st.lists(RANGES, max_size=3),
    steps=st.lists(
        st.one_of(RANGES, st.tuples(RANGES, PAGE_SIZES, st.lists(RANGES, max_size=2))), max_size=12
    ),
)
def test_a_report_is_what_a_set_of_pages_says(
    tracked: list[tuple[int, int]],
    steps: list[tuple[int, int] | tuple[tuple[int, int], int, list[tuple[int, int]]]],
) -> None:
    log = DirtyLog(lambda: None)
    log.start(tracked)
    followed = set().union(*(pages_in(*one) for one in tracked))
    dirty: set[int] = set()
    for step in steps:
        if len(step) == 2:
            log.mark(step[0], step[0] + step[1])
            dirty |= pages_in(*step) & followed if tracked else pages_in(*step)
            continue
        (start, length), page_size, pinned = step
        start -= start % min(page_size, PAGE_SIZE)
        now = set().union(*(pages_in(*one) for one in pinned))
        shown = dirty | (now & followed if tracked else now)
        bitmap = log.report(start, length, page_size, spans(now))
        count = -(-length // page_size)
        assert len(bitmap) == -(-count // 64) * 8
        assert units(bitmap) == {
            index
            for index in range(count)
            if shown & pages_in(start + index * page_size, min(page_size, length - index * page_size))
        }
        dirty -= {
            page for page in dirty if start <= page * PAGE_SIZE and (page + 1) * PAGE_SIZE <= start + length
        }


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pages=st.integers(0, 3000),
    tracked=st.lists(st.tuples(st.integers(0, 3 << 15), st.integers(1, 1 << 14)), max_size=3),
    page_size=st.sampled_from([512, PAGE_SIZE, 1 << 16, 1 << 21]),
    first=st.integers(0, 1 << 15),
    bulk=st.booleans(),
)
def test_thousands_of_spans_are_what_a_set_of_pages_says(
    seed: int, pages: int, tracked: list[tuple[int, int]], page_size: int, first: int, bulk: bool
) -> None:
    """``bulk``: they are pinned while the report is made, and not marked before it."""
    log = DirtyLog(lambda: None)
    log.start([(start * PAGE_SIZE, length * PAGE_SIZE) for start, length in tracked])
    followed = set().union(*(range(start, start + length) for start, length in tracked))
    rng = np.random.default_rng(seed)
    # Three bitmaps with borders in the middle of spans.
    borders = np.sort(rng.choice(3 << 15, 2 * pages, replace=False)).astype(np.int64)
    marked = Spans(borders[::2], borders[1::2])
    if not bulk:
        log.mark_spans(marked)
    written = {page for start, end in zip(*marked, strict=True) for page in range(start, end)}
    written = {page - first for page in (written & followed if tracked else written) if page >= first}
    length = (3 << 15) - first
    bitmap = log.report(first * PAGE_SIZE, length * PAGE_SIZE, page_size, marked if bulk else spans(set()))
    ratio = PAGE_SIZE // page_size
    if ratio > 1:
        assert units(bitmap) == {page * ratio + part for page in written for part in range(ratio)}
    else:
        assert units(bitmap) == {page * PAGE_SIZE // page_size for page in written}
    assert units(log.report(first * PAGE_SIZE, length * PAGE_SIZE, page_size, NOTHING)) == set()


def spans(pages: set[int]) -> Spans:
    ordered = np.array(sorted(pages), np.int64)
    return Spans(ordered, ordered + 1)


def test_nothing_is_logged_before_logging_starts_and_after_it_stops() -> None:
    log = DirtyLog(lambda: None)
    log.mark(0, PAGE_SIZE)
    log.start()
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == set()
    log.mark(0, PAGE_SIZE)
    log.stop()
    assert refusal(lambda: log.report(0, PAGE_SIZE, PAGE_SIZE, NOTHING)) == errno.EINVAL
    log.start()
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == set()


def test_a_page_is_reported_once(log: DirtyLog) -> None:
    log.mark(PAGE_SIZE, PAGE_SIZE + 1)
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == {1}
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == set()


def test_a_report_forgets_only_what_it_reports(log: DirtyLog) -> None:
    log.mark(0, 4 * PAGE_SIZE)
    log.report(PAGE_SIZE, 2 * PAGE_SIZE, PAGE_SIZE, NOTHING)
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == {0, 3}


@pytest.mark.parametrize("halves", [(0, 2048), (2048, 0)])
def test_a_page_reported_by_halves_is_in_both(log: DirtyLog, halves: tuple[int, int]) -> None:
    log.mark(0, 1)
    for half in halves:
        assert units(log.report(half, 2048, 2048, NOTHING)) == {0}


def test_single_pages_are_logged_next_to_others_and_again(log: DirtyLog) -> None:
    pages = [0, 1, 7, 8, 9, 63, 64, 4096, (1 << 15) - 1, 1 << 15, (1 << 15) + 8]
    for page in pages + pages:
        log.mark(page * PAGE_SIZE, page * PAGE_SIZE + 1)
    assert units(log.report(0, 2 * FAR, PAGE_SIZE, NOTHING)) == set(pages)
    assert units(log.report(0, 2 * FAR, PAGE_SIZE, NOTHING)) == set()


def test_what_may_be_written_now_is_dirty_every_time(log: DirtyLog) -> None:
    for _ in range(2):
        assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, Spans.one(1, 3))) == {1, 2}


def test_a_mark_of_all_memory_is_bounded_and_reports_everything() -> None:
    overflows: list[None] = []
    log = DirtyLog(lambda: overflows.append(None), max_chunks=4)
    log.start([(0, 2 * PAGE_SIZE), (FAR, FAR)])
    log.mark(0, TOP)
    assert overflows == []
    log.stop()
    log.start()
    log.mark(0, TOP)
    assert overflows == [None]
    for _ in range(2):
        assert units(log.report(17 * FAR, 3 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == {0, 1, 2}


def test_scattered_pages_overflow_the_log_once_and_nothing_is_lost() -> None:
    overflows: list[None] = []
    log = DirtyLog(lambda: overflows.append(None), max_chunks=4)
    log.start()
    start = np.arange(200, dtype=np.int64) * 20_000
    log.mark_spans(Spans(start, start + 1))
    log.mark(0, 1)
    assert overflows == [None]
    for page in (*start.tolist(), 7):
        assert units(log.report(page * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, NOTHING)) == {0}
    log.stop()
    log.start()
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == set()


def test_an_overflow_reports_only_the_ranges_that_are_logged() -> None:
    log = DirtyLog(lambda: None, max_chunks=1)
    log.start([(PAGE_SIZE, PAGE_SIZE), (FAR, 2 * PAGE_SIZE)])
    log.mark(0, TOP)
    assert units(log.report(0, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == {1}
    assert units(log.report(FAR, 4 * PAGE_SIZE, PAGE_SIZE, NOTHING)) == {0, 1}


def test_what_is_reported_makes_room_for_more() -> None:
    def overflow() -> None:
        raise AssertionError("the log does not overflow")

    log = DirtyLog(overflow, max_chunks=2)
    log.start()
    for number in range(100):
        log.mark(number * FAR, number * FAR + 1)
        assert units(log.report(number * FAR, FAR, 1 << 21, NOTHING)) == {0}


def test_an_overflow_is_logged_once() -> None:
    client = Client()
    client.memory.dirty.start()
    for _ in range(2):
        client.memory.dirty.mark(0, MAX_CHUNKS * FAR + 1)
    assert len(client.events("dirty_log_overflow")) == 1
    client.close()


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "expected"),
    [
        (0, 0, PAGE_SIZE, errno.EINVAL),
        (512, PAGE_SIZE, PAGE_SIZE, errno.EINVAL),
        (256, PAGE_SIZE, 512, errno.EINVAL),
        (TOP - PAGE_SIZE, 2 * PAGE_SIZE, PAGE_SIZE, errno.EOVERFLOW),
    ],
)
def test_a_range_that_cannot_be_is_refused(
    log: DirtyLog, iova: int, length: int, page_size: int, expected: int
) -> None:
    assert refusal(lambda: log.report(iova, length, page_size, NOTHING)) == expected


def test_a_report_of_all_memory_in_huge_units_costs_no_more_than_its_bitmap(log: DirtyLog) -> None:
    log.mark(5, 6)
    log.mark(TOP - 1, TOP)
    assert units(log.report(0, TOP, 1 << 62, Spans.one(1 << 50, (1 << 50) + 1))) == {0, 1, 3}
    assert units(log.report(0, TOP, 1 << 62, NOTHING)) == set()


def test_logging_that_is_on_cannot_be_started(log: DirtyLog) -> None:
    assert refusal(log.start) == errno.EINVAL
    log.stop()
    assert refusal(lambda: log.start([(0, 0)])) == errno.EINVAL
    assert refusal(lambda: log.start([(TOP - 1, 2)])) == errno.EOVERFLOW
    assert not log.active
