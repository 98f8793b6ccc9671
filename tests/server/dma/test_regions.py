from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.contract import GuestMemoryError, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.errors import DmaError
from server.dma.regions import DmaRegion, DmaRegionTable
from tests.server.dma.support import READ, READ_WRITE, WRITE

TOP = 1 << 64


def add(table: DmaRegionTable, page: int, count: int, prot: Prot = READ_WRITE) -> DmaRegion:
    table.check_map(page * PAGE_SIZE, count * PAGE_SIZE, prot, 0)
    region = DmaRegion(page * PAGE_SIZE, count * PAGE_SIZE, prot, None, 0, 0)
    table.add(region)
    return region


def errno_of_map(table: DmaRegionTable, iova: int, size: int, prot: int = 3, offset: int = 0) -> int | None:
    with pytest.raises(DmaError) as caught:
        table.check_map(iova, size, prot, offset)
    return caught.value.errno


def errno_of_unmap(table: DmaRegionTable, iova: int, size: int) -> int | None:
    with pytest.raises(DmaError) as caught:
        table.remove(iova, size)
    return caught.value.errno


@pytest.mark.parametrize(
    ("iova", "size", "prot", "offset"),
    [
        (PAGE_SIZE, 0, 3, 0),
        (PAGE_SIZE, -PAGE_SIZE, 3, 0),
        (-PAGE_SIZE, PAGE_SIZE, 3, 0),
        (1, PAGE_SIZE, 3, 0),
        (PAGE_SIZE, PAGE_SIZE + 1, 3, 0),
        (TOP - PAGE_SIZE, 2 * PAGE_SIZE, 3, 0),
        (TOP, PAGE_SIZE, 3, 0),
        (PAGE_SIZE, TOP, 3, 0),
        (PAGE_SIZE, PAGE_SIZE, 0, 0),
        (PAGE_SIZE, PAGE_SIZE, 4, 0),
        (PAGE_SIZE, PAGE_SIZE, 3, 1),
        (PAGE_SIZE, PAGE_SIZE, 3, -PAGE_SIZE),
    ],
)
def test_a_map_of_bad_shape_is_invalid(iova: int, size: int, prot: int, offset: int) -> None:
    assert errno_of_map(DmaRegionTable(), iova, size, prot, offset) == errno.EINVAL


def test_the_last_page_of_the_address_space_can_be_mapped() -> None:
    table = DmaRegionTable()
    add(table, TOP // PAGE_SIZE - 1, 1)
    region = table.find(TOP - 1)
    assert region is not None
    assert region.end == TOP


@pytest.mark.parametrize(("page", "count"), [(10, 4), (9, 2), (13, 2), (11, 1), (8, 8), (10, 1), (13, 1)])
def test_any_overlap_exists_already(page: int, count: int) -> None:
    table = DmaRegionTable()
    add(table, 10, 4)
    assert errno_of_map(table, page * PAGE_SIZE, count * PAGE_SIZE) == errno.EEXIST


def test_more_regions_than_agreed_are_refused() -> None:
    table = DmaRegionTable(max_regions=2)
    add(table, 0, 1)
    add(table, 2, 1)
    assert errno_of_map(table, 4 * PAGE_SIZE, PAGE_SIZE) == errno.ENOSPC
    table.remove(0, PAGE_SIZE)
    add(table, 4, 1)


def test_an_unmap_takes_every_region_in_its_range() -> None:
    table = DmaRegionTable()
    inside = [add(table, page, 1) for page in (4, 6, 7)]
    outside = [add(table, 3, 1), add(table, 9, 1)]
    assert table.remove(4 * PAGE_SIZE, 5 * PAGE_SIZE) == inside
    assert table.remove_all() == outside
    assert table.mapped_bytes == 0


@pytest.mark.parametrize(("page", "count"), [(10, 3), (11, 3), (11, 1), (9, 2), (13, 4), (10, 5)])
def test_an_unmap_that_would_cut_a_region_is_invalid_and_changes_nothing(page: int, count: int) -> None:
    table = DmaRegionTable()
    add(table, 10, 4)
    add(table, 14, 2)
    assert errno_of_unmap(table, page * PAGE_SIZE, count * PAGE_SIZE) == errno.EINVAL
    assert len(table) == 2


def test_unmapping_nothing_is_no_entry() -> None:
    table = DmaRegionTable()
    add(table, 10, 4)
    assert errno_of_unmap(table, 14 * PAGE_SIZE, 100 * PAGE_SIZE) == errno.ENOENT
    assert errno_of_unmap(table, 0, 10 * PAGE_SIZE) == errno.ENOENT


@pytest.mark.parametrize(("iova", "size"), [(0, 0), (1, PAGE_SIZE), (0, 1), (TOP - PAGE_SIZE, 2 * PAGE_SIZE)])
def test_an_unmap_of_bad_shape_is_invalid(iova: int, size: int) -> None:
    table = DmaRegionTable()
    add(table, 0, 4)
    assert errno_of_unmap(table, iova, size) == errno.EINVAL


def test_a_lookup_never_finds_a_region_that_was_removed() -> None:
    table = DmaRegionTable()
    first = add(table, 4, 1)
    assert table.find(4 * PAGE_SIZE + 5) is first
    table.remove(4 * PAGE_SIZE, PAGE_SIZE)
    assert table.find(4 * PAGE_SIZE + 5) is None
    second = add(table, 4, 1)
    assert table.find(4 * PAGE_SIZE + 5) is second


def test_the_parts_of_a_range_are_those_of_its_regions() -> None:
    table = DmaRegionTable()
    low, high = add(table, 1, 1), add(table, 2, 2)
    assert table.parts(PAGE_SIZE + 7, 3 * PAGE_SIZE, READ) == [
        (low, PAGE_SIZE + 7, 2 * PAGE_SIZE),
        (high, 2 * PAGE_SIZE, 3 * PAGE_SIZE),
    ]


@pytest.mark.parametrize(
    ("prot", "wanted", "allowed"),
    [
        (READ, READ, True),
        (READ, WRITE, False),
        (READ, READ_WRITE, False),
        (WRITE, WRITE, True),
        (WRITE, READ, False),
        (WRITE, READ_WRITE, False),
        (READ_WRITE, READ_WRITE, True),
    ],
)
def test_a_region_gives_the_access_that_it_was_mapped_with(prot: Prot, wanted: Prot, allowed: bool) -> None:
    table = DmaRegionTable()
    add(table, 0, 1, prot)
    if allowed:
        assert len(table.parts(0, PAGE_SIZE, wanted)) == 1
    else:
        with pytest.raises(GuestMemoryError) as caught:
            table.parts(0, PAGE_SIZE, wanted)
        assert caught.value.errno == errno.EPERM


def test_a_hole_in_a_range_is_invalid() -> None:
    table = DmaRegionTable()
    add(table, 0, 1)
    add(table, 2, 1)
    with pytest.raises(GuestMemoryError) as caught:
        table.parts(0, 3 * PAGE_SIZE, READ)
    assert caught.value.errno == errno.EINVAL


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 6)), max_size=60))
def test_maps_and_unmaps_agree_with_a_list_of_pages(requests: list[tuple[bool, int, int]]) -> None:
    table = DmaRegionTable()
    model: dict[int, range] = {}  # the region that each mapped page is in
    for mapping, page, count in requests:
        wanted = range(page, page + count)
        touched = {model[number] for number in wanted if number in model}
        if mapping and not touched:
            add(table, page, count)
            model.update(dict.fromkeys(wanted, wanted))
        elif mapping:
            assert errno_of_map(table, page * PAGE_SIZE, count * PAGE_SIZE) == errno.EEXIST
        elif not touched:
            assert errno_of_unmap(table, page * PAGE_SIZE, count * PAGE_SIZE) == errno.ENOENT
        elif any(set(region) - set(wanted) for region in touched):
            assert errno_of_unmap(table, page * PAGE_SIZE, count * PAGE_SIZE) == errno.EINVAL
        else:
            removed = table.remove(page * PAGE_SIZE, count * PAGE_SIZE)
            assert {region.iova // PAGE_SIZE for region in removed} == {region.start for region in touched}
            model = {number: region for number, region in model.items() if region not in touched}
        assert table.mapped_bytes == len(model) * PAGE_SIZE
        for number in range(27):
            found = table.find(number * PAGE_SIZE + 17)
            expected = model.get(number)
            assert (found and found.iova // PAGE_SIZE) == (expected and expected.start)
