from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from server.dma.address_space import PAGE_SIZE, AddressSpace
from server.dma.domain import OutOfRuns
from server.dma.domains import page_pinning
from server.dma.domains.page_pinning import PagePins
from server.dma.errors import DmaDomainUnavailable, DmaError
from tests.fds import open_fds
from tests.server.dma.domains.support import pinned_pages
from tests.server.dma.support import memfd


@pytest.fixture
def space() -> AddressSpace:
    """Eight pages of a memfd, of which no page is in memory for this process yet."""
    space = AddressSpace(8 * PAGE_SIZE)
    fd = memfd(8)
    space.map_file(0, 8 * PAGE_SIZE, fd=fd, file_offset=0, writable=True)
    os.close(fd)
    return space


@pytest.fixture
def pins() -> Iterator[PagePins]:
    one = PagePins()
    yield one
    one.close()


def test_the_kernel_pins_each_page_of_a_range_until_it_is_let_go(pins: PagePins, space: AddressSpace) -> None:
    before = pinned_pages()
    first = pins.pin(space.address, 3 * PAGE_SIZE)
    second = pins.pin(space.address + 2 * PAGE_SIZE, 2 * PAGE_SIZE)
    assert first != second
    assert pinned_pages() == before + 5
    pins.unpin(first)
    assert pinned_pages() == before + 2
    pins.unpin(second)
    assert pinned_pages() == before


def test_closing_lets_go_of_everything_at_once_and_may_be_repeated(space: AddressSpace) -> None:
    before = open_fds(), pinned_pages()
    pins = PagePins()
    pins.pin(space.address, PAGE_SIZE)
    pins.close()
    assert (open_fds(), pinned_pages()) == before
    pins.close()


def test_memory_that_cannot_be_written_cannot_be_pinned(pins: PagePins, space: AddressSpace) -> None:
    room = pins.free_slots
    space.protect(0, PAGE_SIZE, writable=False)
    with pytest.raises(DmaError, match="memfd") as caught:
        pins.pin(space.address, PAGE_SIZE)
    assert caught.value.errno == errno.EFAULT
    assert pins.free_slots == room


def test_as_many_ranges_can_be_pinned_as_the_kernel_takes_and_no_more(
    pins: PagePins, space: AddressSpace
) -> None:
    before = pinned_pages()
    slots = [pins.pin(space.address, PAGE_SIZE) for _ in range(page_pinning.MAX_SLOTS)]
    with pytest.raises(OutOfRuns) as caught:
        pins.pin(space.address, PAGE_SIZE)
    assert caught.value.errno == errno.ENOMEM
    pins.unpin(slots[7])
    assert pins.pin(space.address, PAGE_SIZE) == slots[7]
    for slot in slots:
        pins.unpin(slot)
    assert pinned_pages() == before


def test_one_pin_has_the_size_that_the_kernel_takes_and_no_more(pins: PagePins) -> None:
    size = page_pinning.MAX_PIN_BYTES + PAGE_SIZE
    space = AddressSpace(size)
    with pytest.raises(OSError, match=r"Bad address|memfd|Invalid"):
        pins.pin(space.address, size)


def test_what_cannot_be_let_go_now_is_let_go_later(
    pins: PagePins, space: AddressSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pinned_pages()
    slot = pins.pin(space.address, PAGE_SIZE)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOMEM, "no")

    with monkeypatch.context() as patch:
        patch.setattr(page_pinning, "_call", refuse)
        pins.unpin(slot)
    assert pinned_pages() == before + 1
    other = pins.pin(space.address + PAGE_SIZE, PAGE_SIZE)
    assert pinned_pages() == before + 1
    pins.unpin(other)
    assert pinned_pages() == before


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EMFILE])
@pytest.mark.parametrize("call", [page_pinning.SYS_IO_URING_SETUP, page_pinning.SYS_IO_URING_REGISTER])
def test_a_kernel_without_io_uring_is_one_line_that_says_why_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, code: int, call: int
) -> None:
    real, before = page_pinning._call, open_fds()

    def refuse(number: int, *arguments: object) -> int:
        if number == call:
            raise OSError(code, os.strerror(code))
        return real(number, *arguments)

    monkeypatch.setattr(page_pinning, "_call", refuse)
    with pytest.raises(DmaDomainUnavailable, match=r"Linux 5\.19 .* kernel\.io_uring_disabled=0") as caught:
        PagePins()
    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert open_fds() == before
