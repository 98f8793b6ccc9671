"""The map of runs against a dictionary of pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.dma import runs as runs_module
from server.dma.run_rows import (
    COUNT,
    DMA,
    END,
    FLAGS,
    SEAM,
    START,
    WRITERS,
    Rows,
    empty_rows,
    gaps,
    joined,
    pages_of,
)
from server.dma.runs import RunMap
from server.dma.spans import Spans

PAGES = 60

SPANS = st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=40).map(sorted)


def spans_of(pages: list[int], *, whole: bool) -> Spans:
    """The pages as spans: each for itself, or neighbours together."""
    start = [page for page in pages if not (whole and page - 1 in pages)]
    end = [page + 1 for page in pages if not (whole and page + 1 in pages)]
    return Spans(np.array(start, np.int64), np.array(end, np.int64))


def rows_of(spans: Spans, first_dma: int) -> Rows:
    rows = empty_rows(len(spans.start))
    sizes = spans.end - spans.start
    rows[START], rows[END], rows[COUNT] = spans.start, spans.end, 1
    rows[DMA] = first_dma + np.cumsum(sizes) - sizes
    rows[FLAGS] = SEAM
    return rows


def as_pages(rows: Rows) -> dict[int, tuple[int, int]]:
    """DMA page and count of each page."""
    pages = {}
    for start, end, dma, count, *_ in rows.T.tolist():
        assert start < end
        for page in range(start, end):
            assert page not in pages
            pages[page] = dma + page - start, count
    return pages


def count(by: int) -> runs_module.Change:
    def change(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
        rows[COUNT, meant] += by
        return rows[:, ~meant | (rows[COUNT] > 0)]

    return change


@pytest.mark.parametrize(("chunk", "few"), [(2048, 8), (4, 2), (3, 0)])
@settings(max_examples=80, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), SPANS, st.booleans()), max_size=25))
def test_runs_agree_with_a_dictionary_of_pages(
    chunk: int, few: int, steps: list[tuple[bool, list[int], bool]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "_CHUNK", chunk)
        patch.setattr(runs_module, "_FEW", few)
        run_map = RunMap()
        model: dict[int, tuple[int, int]] = {}
        next_dma = 1000
        for add, pages, whole in steps:
            spans = spans_of(pages, whole=whole)
            if add:
                missing = gaps(spans, run_map.lookup(spans))
                new = rows_of(missing, next_dma)
                run_map.update(spans, count(1), new)
                for page in pages:
                    if page in model:
                        model[page] = model[page][0], model[page][1] + 1
                for page in (page for start, end in zip(*missing, strict=True) for page in range(start, end)):
                    model[page] = next_dma, 1
                    next_dma += 1
                next_dma += 7
            else:
                run_map.update(spans, count(-1))
                for page in pages:
                    if page in model:
                        model[page] = model[page][0], model[page][1] - 1
                        if not model[page][1]:
                            del model[page]
            assert as_pages(run_map.rows()) == model
            assert as_pages(run_map.lookup(spans)) == {page: model[page] for page in pages if page in model}
            assert len(run_map) == run_map.rows().shape[1]
            for page in range(PAGES):
                assert run_map.any_in(page, page + 3) == any(near in model for near in range(page, page + 3))


def test_pages_that_continue_each_other_become_one_run() -> None:
    rows = empty_rows(3)
    rows[START], rows[END], rows[DMA] = [1, 2, 3], [2, 3, 4], [11, 12, 14]
    assert joined(rows)[[START, END, DMA]].T.tolist() == [[1, 3, 11], [3, 4, 14]]


def test_a_run_that_begins_a_mapping_is_not_joined() -> None:
    rows = empty_rows(2)
    rows[START], rows[END], rows[DMA] = [1, 2], [2, 3], [11, 12]
    rows[FLAGS, 1] = 8
    assert joined(rows).shape[1] == 2


@pytest.mark.parametrize("size", [1, 300])
def test_the_short_way_counts_a_run_that_is_exactly_the_range(size: int) -> None:
    run_map = RunMap()
    start = np.arange(0, 2 * size, 2)
    run_map.insert(rows_of(Spans(start, start + 1), 50))
    assert run_map.adjust(0, 1, pins=1, writers=1, flags=SEAM)
    assert run_map.lookup(Spans.one(0, 1))[[COUNT, WRITERS]].T.tolist() == [[2, 1]]
    assert run_map.adjust(0, 1, pins=-1, writers=-1, flags=0)
    assert not run_map.adjust(0, 1, pins=-1, writers=0, flags=0)
    assert not run_map.adjust(0, 2, pins=1, writers=0, flags=0)
    assert not run_map.adjust(0, 1, pins=1, writers=0, flags=1)
    assert run_map.lookup(Spans.one(0, 1))[[COUNT, WRITERS]].T.tolist() == [[1, 0]]


def test_the_short_way_leaves_counts_alone_that_do_not_fit() -> None:
    run_map = RunMap()
    start = np.arange(0, 600, 2)
    run_map.insert(rows_of(Spans(start, start + 1), 50))
    for _ in range(254):
        assert run_map.adjust(0, 1, pins=1, writers=0, flags=0)
    assert not run_map.adjust(0, 1, pins=1, writers=0, flags=0)
    run_map.update(Spans.one(0, 1), count(1))
    assert run_map.lookup(Spans.one(0, 1))[COUNT].tolist() == [256]


def test_a_million_runs_come_and_go() -> None:
    run_map = RunMap()
    start = np.arange(0, 2_000_000, 2)
    spans = Spans(start, start + 1)
    run_map.insert(rows_of(spans, 1 << 36))
    assert len(run_map) == 1_000_000
    assert pages_of(run_map.lookup(Spans.one(0, 2_000_000))) == 1_000_000
    run_map.update(spans, count(-1))
    assert len(run_map) == 0
