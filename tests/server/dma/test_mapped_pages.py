"""What bounds the cache, and what is left after a pin that failed half way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from devices.contract import DmaSegment, GuestMemoryError, GuestRange
from server.dma.address_space import PAGE_SIZE
from server.dma.domain import FileRun
from server.dma.domains.recording import RecordingDomain
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.dma.domains.type1 import Type1Domain
from tests.server.dma.domains.type1_kernel import Type1Kernel, container
from tests.server.dma.support import READ, READ_WRITE, Client, errno_of_pin, keep, pages, stat


@pytest.fixture
def recording() -> Iterator[Client]:
    client = Client(RecordingDomain())
    client.map(0, 64)
    yield client
    client.close()


def test_a_pin_that_would_cut_a_run_into_more_mappings_than_there_may_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each page between those that stay pinned becomes a mapping of its own when the long pin goes."""
    client = Client(SoftDomain(SMALLEST_APERTURE))
    client.map(0, 64)
    monkeypatch.setattr(client.domain, "_max_mappings", 20)
    whole = client.memory.pin_pages([GuestRange(0, 64 * PAGE_SIZE)], READ, keep)
    assert errno_of_pin(client, pages(*range(0, 64, 2))) == errno.ENOMEM
    with client.memory.pin_pages(pages(2, 4, 6), READ, keep):
        whole.release()
    assert stat(client, "dma_mapped_pages") == 0
    client.close()


def test_pages_that_cannot_be_made_writable_stay_as_they_were(
    recording: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = recording.domain
    assert isinstance(domain, RecordingDomain)
    holders = [recording.memory.pin_pages(pages(page), READ, keep) for page in (1, 3, 5)]
    make_writable = domain.make_writable

    def fail_at_the_third(dma_addr: int, length: int) -> None:
        if dma_addr == holders[2].segments[0].dma_addr:
            raise OSError(errno.ENOMEM, "no mapping left")
        make_writable(dma_addr, length)

    monkeypatch.setattr(domain, "make_writable", fail_at_the_third)
    with pytest.raises(GuestMemoryError, match="no mapping left"):
        recording.memory.pin_pages(pages(1, 3, 5, 7), READ_WRITE, keep)
    assert len(domain.pages) == 3
    assert not any(page.writable for page in domain.pages.values())
    for pins in holders:
        pins.release()


def test_an_error_that_eviction_cannot_cure_evicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = RecordingDomain()
    client = Client(domain, retain=8 * PAGE_SIZE)
    client.map(0, 8)
    client.memory.pin_pages(pages(1, 2), READ, keep).release()

    def refuse(_runs: list[FileRun], *, writable: bool) -> list[DmaSegment]:
        raise OSError(errno.EFAULT, "cannot be pinned")

    monkeypatch.setattr(domain, "map_runs", refuse)
    with pytest.raises(GuestMemoryError, match="cannot be pinned"):
        client.memory.pin_pages(pages(5), READ, keep)
    assert stat(client, "retained_pages") == 2
    client.close()


def test_a_limit_that_is_no_number_of_pages_is_not_exceeded() -> None:
    client = Client(RecordingDomain(), max_pinned=3 * PAGE_SIZE - 1)
    client.map(0, 8)
    assert errno_of_pin(client, pages(1, 3, 5)) == errno.ENOMEM
    client.memory.pin_pages(pages(1, 3), READ, keep).release()
    client.close()


def test_what_lingers_in_the_domain_counts_against_the_limit() -> None:
    kernel = Type1Kernel()
    client = Client(Type1Domain(container(kernel)), max_pinned=32 * PAGE_SIZE)
    client.map(0, 64)
    long = client.memory.pin_pages([GuestRange(0, 30 * PAGE_SIZE)], READ, keep)
    held = client.memory.pin_pages(pages(7), READ, keep)
    long.release()
    assert stat(client, "pinned_pages") == 1
    assert stat(client, "locked_bytes") == kernel.locked * PAGE_SIZE == 30 * PAGE_SIZE
    assert errno_of_pin(client, [GuestRange(40 * PAGE_SIZE, 3 * PAGE_SIZE)]) == errno.ENOMEM
    held.release()
    assert stat(client, "locked_bytes") == kernel.locked == 0
    client.close()


def test_nothing_lingers_beyond_its_region_where_another_region_has_the_same_page() -> None:
    kernel = Type1Kernel()
    client = Client(Type1Domain(container(kernel)))
    client.map(0, 10)
    client.map(20, 10)
    first = client.memory.pin_pages([GuestRange(0, 10 * PAGE_SIZE)], READ, keep)
    rest = client.memory.pin_pages(pages(9), READ, keep)
    first.release()
    alias = client.memory.pin_pages(pages(22), READ, keep)
    client.unmap(0, 10)
    assert rest.revoked
    assert kernel.locked == 1
    alias.release()
    client.close()


def test_a_list_that_names_scattered_memory_over_and_over_is_pinned_but_not_spelt_out(
    recording: Client,
) -> None:
    scattered = recording.memory.pin_pages(pages(*range(0, 64, 2)), READ, keep)
    whole = GuestRange(0, 63 * PAGE_SIZE)
    pins = recording.memory.pin_pages([whole, *pages(63)] * 8192, READ, keep)
    for ask in (lambda: pins.segments, pins.views):
        with pytest.raises(GuestMemoryError) as caught:
            ask()
        assert caught.value.errno == errno.ENOMEM
    for one in (pins, scattered):
        one.release()
    assert stat(recording, "dma_mapped_pages") == 0


def test_a_list_that_names_pages_twice_is_not_mapped_a_second_time_for_the_cpu() -> None:
    client = Client(SoftDomain(SMALLEST_APERTURE))
    client.map(0, 8)
    with client.memory.pin_pages(pages(1, 3, 1), READ, keep) as pins:
        assert b"".join(pins.views()) == client.file_page(1) + client.file_page(3) + client.file_page(1)
        assert len(pins.views()) == 2
    client.close()


def test_a_pin_of_nothing_has_no_addresses(recording: Client) -> None:
    with recording.memory.pin_pages([], READ, keep) as pins:
        assert (pins.length, list(pins.segments), list(pins.views())) == (0, [], [])
        for ask in (lambda: pins.dma_addr(0), lambda: pins.dma_addrs([0])):
            with pytest.raises(GuestMemoryError, match="not part of this pin"):
                ask()


def test_addresses_in_the_upper_half_are_shown_as_they_are() -> None:
    client = Client(RecordingDomain())
    top = 1 << 64
    client.memory.map(top - PAGE_SIZE, PAGE_SIZE, READ, os.dup(client.fd), 0)
    with client.memory.pin_pages([GuestRange(top - PAGE_SIZE, PAGE_SIZE)], READ, keep):
        [run] = client.memory.pinned_runs
        assert (run.start, run.end) == (top - PAGE_SIZE, top)
    client.close()


@pytest.mark.parametrize("length", [-1, -PAGE_SIZE])
def test_a_negative_length_reaches_nothing(recording: Client, length: int) -> None:
    with pytest.raises(GuestMemoryError) as caught:
        recording.memory.view(4 * PAGE_SIZE, length, READ)
    assert caught.value.errno == errno.EINVAL
