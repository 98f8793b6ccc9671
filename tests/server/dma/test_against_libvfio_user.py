"""Our DMA core against libvfio-user's (lib/dma.c of the generation in Debian 12's QEMU), which is none of our making.

Where the two mean the same, they must do the same. Where they do not, :mod:`.libvfio_user_differences` says why.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.work import run_to_completion
from protocol import DmaWrite
from server.dma.address_space import PAGE_SIZE
from tests.fds import open_fds
from tests.server.dma.both_sides import OK, SAME_ERROR, BothSides, read_by, written_by
from tests.server.dma.libvfio_user_differences import (
    BASE,
    DIFFERENCES,
    MAX_PINNED,
    PIN,
    Difference,
)
from tests.server.dma.sgl_server import SglServer, build, pattern
from tests.server.dma.support import READ, READ_WRITE, WRITE, memfd, page_of


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sgl_server"))


@pytest.fixture
def both(program: Path, tmp_path: Path) -> Iterator[BothSides]:
    sides = BothSides(program, tmp_path, max_pinned=MAX_PINNED)
    yield sides
    sides.close()


@pytest.fixture
def mapped(both: BothSides) -> BothSides:
    """Regions of 4, 2 and 1 pages that follow each other, found elsewhere in the file and in another order."""
    assert both.map(BASE, 4 * PAGE_SIZE, offset=8 * PAGE_SIZE) == OK
    assert both.map(BASE + 4 * PAGE_SIZE, 2 * PAGE_SIZE, offset=2 * PAGE_SIZE) == OK
    assert both.map(BASE + 6 * PAGE_SIZE, PAGE_SIZE, READ, offset=7 * PAGE_SIZE) == OK
    return both


def test_both_have_the_regions_that_were_mapped(mapped: BothSides) -> None:
    mapped.check_same_regions()


@pytest.mark.parametrize(
    ("offset", "length", "cut"),
    [
        pytest.param(0, 1, [1], id="a byte"),
        pytest.param(0, 4 * PAGE_SIZE, [4 * PAGE_SIZE], id="a region"),
        pytest.param(PAGE_SIZE - 3, 6, [6], id="over a page border"),
        pytest.param(4 * PAGE_SIZE - 3, 6, [3, 3], id="over a region border"),
        pytest.param(
            3 * PAGE_SIZE + 5,
            3 * PAGE_SIZE,
            [PAGE_SIZE - 5, 2 * PAGE_SIZE, 5],
            id="over two region borders",
        ),
        pytest.param(0, 7 * PAGE_SIZE, [4 * PAGE_SIZE, 2 * PAGE_SIZE, PAGE_SIZE], id="everything"),
    ],
)
def test_a_range_is_the_same_memory_cut_at_the_same_borders(
    mapped: BothSides, offset: int, length: int, cut: list[int]
) -> None:
    held = mapped.pin(BASE + offset, length, READ)
    assert [piece.length for piece in mapped.check_same_memory(held)] == cut
    mapped.release(held)


def test_a_page_is_found_where_the_map_says_it_is_in_the_file(mapped: BothSides) -> None:
    whole = b"".join(
        piece.data for piece in mapped.library.show(mapped.pin(BASE, 7 * PAGE_SIZE, READ).number)
    )
    assert whole == b"".join(page_of(number) for number in (8, 9, 10, 11, 2, 3, 7))


@pytest.mark.parametrize(
    ("offset", "length", "prot", "refused"),
    [
        pytest.param(-1, 2, READ, "EINVAL", id="a hole in front"),
        pytest.param(7 * PAGE_SIZE - 1, 2, READ, "EINVAL", id="a hole behind"),
        pytest.param(64 * PAGE_SIZE, 1, READ, "EINVAL", id="nothing there"),
        pytest.param(6 * PAGE_SIZE, 1, READ_WRITE, "EPERM", id="a region for reading"),
        pytest.param(4 * PAGE_SIZE, 3 * PAGE_SIZE, WRITE, "EPERM", id="a region for reading at the end"),
    ],
)
def test_both_refuse_a_range_for_the_same_reason(
    mapped: BothSides, offset: int, length: int, prot: int, refused: str
) -> None:
    assert mapped.try_pin(BASE + offset, length, prot) == (refused, SAME_ERROR[refused])


def test_both_refuse_memory_that_is_not_shared(both: BothSides) -> None:
    assert both.map(BASE, PAGE_SIZE, shared=False) == OK
    both.check_same_regions()
    assert both.try_pin(BASE, 1) == ("EFAULT", SAME_ERROR["EFAULT"])


def test_what_one_side_writes_the_other_and_the_client_see(mapped: BothSides) -> None:
    address = BASE + 4 * PAGE_SIZE - 2
    held = mapped.pin(address, 4)
    held.pin.views()[0][:] = b"ours"
    assert b"".join(piece.data for piece in mapped.library.show(held.number)) == b"ours"
    assert mapped.client.file_page(11)[-2:] + mapped.client.file_page(2)[:2] == b"ours"
    mapped.library.fill(held.number, b"lib!")
    assert bytes(held.pin.views()[0]) == b"lib!"
    assert run_to_completion(mapped.memory.read(address, 4)) == b"lib!"
    assert mapped.client.file_page(11)[-2:] + mapped.client.file_page(2)[:2] == b"lib!"
    run_to_completion(mapped.memory.write(address + 1, b"oo"))
    assert b"".join(piece.data for piece in mapped.library.show(held.number)) == b"loo!"


def test_a_page_may_be_held_twice_and_stays_until_both_are_given_back(mapped: BothSides) -> None:
    first, second = mapped.pin(BASE, PAGE_SIZE), mapped.pin(BASE, 2 * PAGE_SIZE)
    mapped.release(first)
    mapped.check_same_memory(second)
    mapped.release(second)
    assert mapped.memory.pinned_runs == []


def test_an_address_that_comes_back_is_other_memory(mapped: BothSides) -> None:
    mapped.release(mapped.pin(BASE, 4 * PAGE_SIZE))
    assert mapped.unmap(BASE, 4 * PAGE_SIZE) == OK
    assert mapped.try_pin(BASE, 1) == ("EINVAL", "ENOENT")
    assert mapped.map(BASE, 4 * PAGE_SIZE, READ, offset=20 * PAGE_SIZE) == OK
    mapped.check_same_regions()
    pieces = mapped.check_same_memory(mapped.pin(BASE, PAGE_SIZE, READ))
    assert pieces[0].data == page_of(20)
    assert mapped.try_pin(BASE, 1, WRITE) == ("EPERM", "EACCES")


def test_unmapping_everything_leaves_nothing(mapped: BothSides) -> None:
    assert mapped.unmap_all() == OK
    mapped.check_same_regions()
    assert mapped.try_pin(BASE, 1, READ) == ("EINVAL", "ENOENT")
    assert mapped.unmap_all() == OK


def test_unmapping_what_is_not_mapped_is_the_same_error(mapped: BothSides) -> None:
    assert mapped.unmap(64 * PAGE_SIZE, PAGE_SIZE) == ("ENOENT", "ENOENT")


def test_both_refuse_an_fd_that_cannot_be_written_for_a_region_that_can(both: BothSides) -> None:
    fd = os.open(f"/proc/self/fd/{both.client.fd}", os.O_RDONLY)
    assert both.map(BASE, PAGE_SIZE, READ_WRITE, fd=fd) == ("EACCES", "EACCES")
    assert both.map(BASE, PAGE_SIZE, READ, fd=fd) == OK
    both.check_same_regions()
    os.close(fd)


def test_both_refuse_an_empty_region_of_a_file(both: BothSides) -> None:
    assert both.map(BASE, 0) == ("EINVAL", "EINVAL")
    both.check_same_regions()


def test_unshared_memory_is_read_and_written_by_the_same_messages(both: BothSides) -> None:
    assert both.map(BASE, PAGE_SIZE, shared=False) == OK
    both.library.send(BASE, b"data")
    assert both.library.written == written_by(both.memory.write(BASE, b"data")) == [DmaWrite(BASE, b"data")]
    assert both.library.fetch(BASE, 8) == read_by(both.memory.read(BASE, 8)) == pattern(BASE, 8)


def test_pages_that_were_given_back_after_writing_are_the_same_dirty_pages(both: BothSides) -> None:
    both.log_dirty_pages()
    assert both.map(BASE, 11 * PAGE_SIZE) == OK
    both.release(both.pin(BASE + PAGE_SIZE + 1, 2 * PAGE_SIZE))
    both.release(both.pin(BASE + 5 * PAGE_SIZE, PAGE_SIZE, READ))
    both.release(both.pin(BASE + 9 * PAGE_SIZE, 1))
    dirty = both.dirty_pages(BASE, 11 * PAGE_SIZE)
    assert dirty == (0b10_0000_1110, 0b10_0000_1110)


def test_neither_keeps_fds_of_what_is_unmapped(both: BothSides) -> None:
    assert both.map(BASE, PAGE_SIZE) == OK
    both.check_same_regions()  # what the library does behind its reply, it has done when it answers this
    before = both.library.open_fds, open_fds()
    for page in range(1, 5):
        assert both.map(BASE + page * PAGE_SIZE, PAGE_SIZE, offset=page * PAGE_SIZE) == OK
    for page in range(1, 5):
        assert both.unmap(BASE + page * PAGE_SIZE, PAGE_SIZE) == OK
    both.check_same_regions()
    assert (both.library.open_fds, open_fds()) == before


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.case)
def test_the_two_differ_as_the_list_says(both: BothSides, difference: Difference) -> None:
    assert difference.ask(both) == (difference.ours, difference.library)


def test_the_errors_that_pins_are_compared_by_are_in_the_list() -> None:
    listed = {(one.ours, one.library) for one in DIFFERENCES if one.why == PIN}
    assert listed == {(ours, library) for ours, library in SAME_ERROR.items() if ours != library}


def test_the_library_dies_of_a_file_that_is_too_short(program: Path, tmp_path: Path) -> None:
    server = SglServer(program, tmp_path)
    fd = memfd(1)
    server.map(BASE, 2 * PAGE_SIZE, READ, fd)
    os.close(fd)
    number = server.get(BASE + PAGE_SIZE, 1, READ)
    with pytest.raises(AssertionError, match="the server has ended"):
        server.show(number)
    assert server.wait() == -signal.SIGBUS
    server.kill()
