from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from devices.contract import GuestMemoryError, GuestRange
from server.dma import libc
from server.dma.address_space import PAGE_SIZE, AddressSpace
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domain import DmaSegment, FileRun
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from tests.server.dma.support import READ, READ_WRITE, Client, keep, mappings, memfd, page_of, pages

HUGE = 1 << 21


@pytest.fixture
def domain() -> SoftDomain:
    return SoftDomain(SMALLEST_APERTURE)


@pytest.fixture
def backing() -> Iterator[BackingFile]:
    files = BackingFiles(lambda _: None)
    one = files.acquire(memfd(32), 0, 32 * PAGE_SIZE, writable=True)
    yield one
    files.release(one)


def run(backing: BackingFile, page: int, count: int = 1) -> FileRun:
    return FileRun(backing, page * PAGE_SIZE, count * PAGE_SIZE)


def test_scattered_pages_become_one_contiguous_range(domain: SoftDomain, backing: BackingFile) -> None:
    [segment] = domain.map_runs([run(backing, 9), run(backing, 2, 2), run(backing, 30)], writable=True)
    assert domain.view(*segment) == page_of(9) + page_of(2) + page_of(3) + page_of(30)
    assert segment.dma_addr > 0
    domain.unmap(*segment)


def test_a_write_through_the_aperture_is_a_write_to_the_clients_file(
    domain: SoftDomain, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 5)], writable=True)
    domain.memory[segment.dma_addr] = 0xEE
    assert os.pread(backing.fd, 1, 5 * PAGE_SIZE) == b"\xee"
    domain.unmap(*segment)


def test_an_unmapped_page_reads_as_zeros_and_swallows_writes(
    domain: SoftDomain, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 5, 3)], writable=True)
    stale = domain.view(*segment)
    domain.unmap(segment.dma_addr + PAGE_SIZE, PAGE_SIZE)
    assert stale == page_of(5) + bytes(PAGE_SIZE) + page_of(7)
    stale[PAGE_SIZE : PAGE_SIZE + 4] = b"lost"
    assert os.pread(backing.fd, PAGE_SIZE, 6 * PAGE_SIZE) == page_of(6)
    domain.unmap(segment.dma_addr, PAGE_SIZE)
    domain.unmap(segment.dma_addr + 2 * PAGE_SIZE, PAGE_SIZE)


def test_a_view_that_outlives_the_domain_is_harmless(backing: BackingFile) -> None:
    domain = SoftDomain(SMALLEST_APERTURE)
    [segment] = domain.map_runs([run(backing, 5)], writable=True)
    stale = domain.view(*segment)
    domain.unmap(*segment)
    domain.close()
    del domain
    assert stale == bytes(PAGE_SIZE)


def test_a_page_mapped_read_only_can_be_made_writable_in_place(
    domain: SoftDomain, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 5, 2)], writable=False)
    domain.make_writable(segment.dma_addr, PAGE_SIZE)
    domain.memory[segment.dma_addr] = 0xEE
    assert os.pread(backing.fd, 1, 5 * PAGE_SIZE) == b"\xee"
    domain.unmap(*segment)


def test_an_aperture_that_the_kernel_does_not_give_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(size: int, align: int) -> AddressSpace:
        if size > 2 * SMALLEST_APERTURE:
            raise OSError(errno.ENOMEM, "no")
        return AddressSpace(size, align)

    monkeypatch.setattr("server.dma.domains.soft.AddressSpace", reserve)
    assert SoftDomain(8 * SMALLEST_APERTURE).size == 2 * SMALLEST_APERTURE


def test_no_address_space_at_all_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_size: int, _align: int) -> AddressSpace:
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr("server.dma.domains.soft.AddressSpace", refuse)
    with pytest.raises(OSError, match="soft DMA domain"):
        SoftDomain()


def test_more_than_the_aperture_is_out_of_memory(domain: SoftDomain, backing: BackingFile) -> None:
    with pytest.raises(OSError, match="IO virtual") as caught:
        domain.map_runs([FileRun(backing, 0, SMALLEST_APERTURE)], writable=True)
    assert caught.value.errno == errno.ENOMEM


def test_a_map_that_fails_half_way_changes_nothing(
    domain: SoftDomain, backing: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, room = mappings(), domain.max_runs
    real, calls = libc.map_file_at, SimpleNamespace(left=2)

    def limited(address: int, length: int, prot: int, fd: int, offset: int) -> None:
        calls.left -= 1
        if calls.left < 0:
            raise OSError(errno.ENOMEM, "over vm.max_map_count")
        real(address, length, prot, fd, offset)

    monkeypatch.setattr(libc, "map_file_at", limited)
    with pytest.raises(OSError, match="max_map_count"):
        domain.map_runs([run(backing, 2), run(backing, 4), run(backing, 6)], writable=True)
    assert (mappings(), domain.max_runs) == (before, room)
    assert bytes(domain.memory[PAGE_SIZE : 4 * PAGE_SIZE]) == bytes(3 * PAGE_SIZE)


def test_what_cannot_be_unmapped_now_stays_out_of_use_until_it_can(
    domain: SoftDomain, backing: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = domain.map_runs([run(backing, 2)], writable=True)

    def refuse(_address: int, _length: int) -> None:
        raise OSError(errno.ENOMEM, "over vm.max_map_count")

    with monkeypatch.context() as patch:
        patch.setattr(libc, "map_nothing_at", refuse)
        domain.unmap(*first)
    [second] = domain.map_runs([run(backing, 3)], writable=True)
    assert second.dma_addr != first.dma_addr
    domain.unmap(*second)
    assert domain.view(*first) == bytes(PAGE_SIZE)
    [third] = domain.map_runs([run(backing, 4)], writable=True)
    assert third.dma_addr == first.dma_addr
    domain.unmap(*third)


def test_pins_stop_before_the_process_runs_out_of_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.dma.domains.soft._max_map_count", lambda: 8192 + 9)
    client = Client()
    client.map(0, 64)
    held = client.memory.pin_pages(pages(0, 2, 4, 6), READ, keep)
    with pytest.raises(GuestMemoryError) as caught:
        client.memory.pin_pages(pages(*range(10, 30, 2)), READ, keep)
    assert caught.value.errno == errno.ENOMEM
    assert client.memory.stats()["pinned_pages"] == 4
    held.release()
    client.close()


@pytest.fixture
def huge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client whose file can be mapped in units of 2 MiB only, and another one of small pages."""
    monkeypatch.setattr(
        "server.dma.backing._page_size", lambda fd: HUGE if os.fstat(fd).st_size >= HUGE else 4096
    )
    client = Client(file_pages=2 * HUGE // PAGE_SIZE)
    client.map(0, 1024)
    small = memfd(4, first=5000)
    client.memory.map(2048 * PAGE_SIZE, 4 * PAGE_SIZE, READ_WRITE, small, 0)
    yield client
    client.close()


def test_pages_of_a_huge_page_file_are_where_they_are_in_the_file(huge: Client) -> None:
    pins = huge.memory.pin_pages(pages(700, 3, 4), READ_WRITE, keep)
    assert [bytes(view) for view in pins.views()] == [page_of(700), page_of(3) + page_of(4)]
    assert [segment.length for segment in pins.segments] == [PAGE_SIZE, 2 * PAGE_SIZE]
    window = pins.segments[0].dma_addr - 700 * PAGE_SIZE
    assert window % HUGE == 0
    assert pins.segments[1].dma_addr == window + 3 * PAGE_SIZE
    pins.release()


def test_a_huge_page_file_stays_mapped_while_any_of_its_pages_is_pinned(huge: Client) -> None:
    idle = mappings()
    first = huge.memory.pin_pages(pages(1), READ, keep)
    second = huge.memory.pin_pages([GuestRange(0, 8 * PAGE_SIZE)], READ_WRITE, keep)
    first.release()
    assert mappings() == idle + 1
    assert bytes(second.views()[0]) == b"".join(map(page_of, range(8)))
    second.release()
    assert mappings() == idle


def test_huge_and_small_pages_mix_in_one_scatter_list(huge: Client) -> None:
    pins = huge.memory.pin_pages(pages(2048, 9, 2050, 2049), READ, keep)
    assert b"".join(pins.views()) == b"".join(map(page_of, (5000, 9, 5002, 5001)))
    pins.release()
    assert huge.memory.stats()["locked_bytes"] == 0


def test_a_huge_page_file_that_does_not_fit_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = SoftDomain(SMALLEST_APERTURE)
    monkeypatch.setattr("server.dma.backing._page_size", lambda _: HUGE)
    files = BackingFiles(lambda _: None)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 2 * SMALLEST_APERTURE)
    backing = files.acquire(fd, 0, PAGE_SIZE, writable=True)
    with pytest.raises(OSError, match="IO virtual"):
        domain.map_runs([FileRun(backing, 0, PAGE_SIZE)], writable=True)
    files.release(backing)


def test_unmapping_a_range_that_reaches_into_a_huge_page_file_unmaps_both(huge: Client) -> None:
    domain = huge.domain
    region = huge.memory.pin_pages(pages(0), READ, keep)
    [window] = region.segments
    files = BackingFiles(lambda _: None)
    small = files.acquire(memfd(1), 0, PAGE_SIZE, writable=True)
    assert isinstance(domain, SoftDomain)
    fill = domain.map_runs([run(small, 0)] * ((window.dma_addr - PAGE_SIZE) // PAGE_SIZE), writable=False)
    assert fill == [DmaSegment(PAGE_SIZE, window.dma_addr - PAGE_SIZE)]
    domain.unmap(PAGE_SIZE, window.dma_addr)
    assert domain.view(PAGE_SIZE, 16) == bytes(16)
    assert domain.view(window.dma_addr, 16) == bytes(16)
    files.release(small)
    region.revoke()
