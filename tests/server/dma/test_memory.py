from __future__ import annotations

import errno
import gc
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from devices.contract import GuestMemoryError, PinnedPages
from devices.work import ReadMessage, Request, WriteMessage, run_to_completion
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.dma.errors import DmaError
from tests.fds import open_fds
from tests.server.dma.support import READ, READ_WRITE, WRITE, Client, keep, mappings, page_of, pages

TOP = 1 << 64


def answer(work: Coroutine[Request, Any, Any], memory: bytearray) -> tuple[object, list[Request]]:
    """Drive ``work`` with a client that answers messages from ``memory``; what it returned and asked."""
    asked: list[Request] = []
    reply: bytes | None = None
    try:
        while True:
            request = work.send(reply)
            asked.append(request)
            if isinstance(request, ReadMessage):
                reply = bytes(memory[request.address : request.address + request.length])
            elif isinstance(request, WriteMessage):
                memory[request.address : request.address + len(request.data)] = request.data
                reply = None
    except StopIteration as stop:
        return stop.value, asked


def errno_of(work: Coroutine[Request, Any, Any]) -> int | None:
    with pytest.raises(GuestMemoryError) as caught:
        run_to_completion(work)
    return caught.value.errno


def test_a_read_crosses_regions(client: Client) -> None:
    client.map(0, 1, at=5)
    client.map(1, 1, at=9)
    data = run_to_completion(client.memory.read(PAGE_SIZE - 4, 8))
    assert data == page_of(5)[-4:] + page_of(9)[:4]


def test_a_write_crosses_regions(client: Client) -> None:
    client.map(0, 1, at=5)
    client.map(1, 1, at=9)
    run_to_completion(client.memory.write(PAGE_SIZE - 4, b"left" + b"right"))
    assert client.file_page(5)[-4:] == b"left"
    assert client.file_page(9)[:5] == b"right"
    assert client.file_page(5)[:-4] == page_of(5)[:-4]


def test_a_read_does_not_change_with_the_memory_later(client: Client) -> None:
    client.map(0, 1)
    before = run_to_completion(client.memory.read(0, 4))
    run_to_completion(client.memory.write(0, b"new!"))
    assert before == page_of(0)[:4]
    assert run_to_completion(client.memory.read(0, 4)) == b"new!"


def test_memory_that_is_not_shared_is_read_by_message(client: Client) -> None:
    client.map_unshared(0, 2)
    guest = bytearray(os.urandom(2 * PAGE_SIZE))
    data, asked = answer(client.memory.read(100, PAGE_SIZE), guest)
    assert data == guest[100 : 100 + PAGE_SIZE]
    assert asked == [ReadMessage(100, PAGE_SIZE)]
    assert client.memory.stats()["messages"] == 1


def test_memory_that_is_not_shared_is_written_by_message(client: Client) -> None:
    client.map_unshared(0, 1)
    guest = bytearray(PAGE_SIZE)
    _, asked = answer(client.memory.write(8, b"hello"), guest)
    assert guest[8:13] == b"hello"
    assert asked == [WriteMessage(8, b"hello")]


def test_messages_are_no_longer_than_the_client_accepts(client: Client) -> None:
    client.map_unshared(0, 1)
    client.memory.max_data_xfer_size = 1000
    guest = bytearray(os.urandom(PAGE_SIZE))
    data, asked = answer(client.memory.read(0, 2500), guest)
    assert data == guest[:2500]
    assert asked == [ReadMessage(0, 1000), ReadMessage(1000, 1000), ReadMessage(2000, 500)]
    payload = os.urandom(2500)
    _, asked = answer(client.memory.write(0, payload), guest)
    assert guest[:2500] == payload
    assert [request.address for request in asked if isinstance(request, WriteMessage)] == [0, 1000, 2000]


def test_a_copy_may_mix_shared_memory_and_messages(client: Client) -> None:
    client.map(0, 1)
    client.map_unshared(1, 1)
    client.map(2, 1, at=2)
    guest = bytearray(b"m" * 3 * PAGE_SIZE)
    data, asked = answer(client.memory.read(PAGE_SIZE - 4, PAGE_SIZE + 8), guest)
    assert data == page_of(0)[-4:] + b"m" * PAGE_SIZE + page_of(2)[:4]
    assert asked == [ReadMessage(PAGE_SIZE, PAGE_SIZE)]


def test_memory_unmapped_while_a_message_is_under_way_is_an_error(client: Client) -> None:
    client.map_unshared(0, 1)
    client.map(1, 1)
    work = client.memory.read(PAGE_SIZE - 4, 8)
    assert work.send(None) == ReadMessage(PAGE_SIZE - 4, 4)
    client.unmap(1, 1)
    with pytest.raises(GuestMemoryError) as caught:
        work.send(b"data")
    assert caught.value.errno == errno.EINVAL


def test_an_answer_of_another_length_is_an_error(client: Client) -> None:
    client.map_unshared(0, 1)
    work = client.memory.read(0, 4)
    work.send(None)
    with pytest.raises(GuestMemoryError):
        work.send(b"too long")


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [
        (2 * PAGE_SIZE - 1, 2, errno.EINVAL),
        (PAGE_SIZE, 1 << 40, errno.EINVAL),
        (50 * PAGE_SIZE, 1, errno.EINVAL),
        (-1, 2, errno.EINVAL),
        (TOP, 1, errno.EOVERFLOW),
        (TOP - 1, 2, errno.EOVERFLOW),
        (9 * PAGE_SIZE - 1, 2, errno.EPERM),
    ],
)
def test_a_range_that_cannot_be_read_is_an_error(
    client: Client, address: int, length: int, expected: int
) -> None:
    client.map(0, 2)
    client.map(8, 1, READ)
    client.map(9, 1, WRITE)
    assert errno_of(client.memory.read(address, length)) == expected
    with pytest.raises(GuestMemoryError) as caught:
        client.memory.view(address, length, READ)
    assert caught.value.errno == expected


def test_a_write_that_does_not_fit_writes_nothing(client: Client) -> None:
    client.map(0, 2)
    client.map(2, 1, READ, at=2)
    assert errno_of(client.memory.write(2 * PAGE_SIZE - 4, b"12345678")) == errno.EPERM
    client.map(4, 1, at=4)
    assert errno_of(client.memory.write(5 * PAGE_SIZE - 4, b"12345678")) == errno.EINVAL
    assert client.file_page(4) == page_of(4)
    assert client.file_page(1) == page_of(1)
    assert client.file_page(2) == page_of(2)


def test_a_view_is_the_memory_in_place(client: Client) -> None:
    client.map(4, 2, at=7)
    view = client.memory.view(4 * PAGE_SIZE + 8, PAGE_SIZE, READ_WRITE)
    assert view is not None
    assert view == (page_of(7) + page_of(8))[8 : 8 + PAGE_SIZE]
    view[:4] = b"here"
    assert client.file_page(7)[8:12] == b"here"


def test_a_view_to_read_cannot_be_written(client: Client) -> None:
    client.map(0, 1)
    view = client.memory.view(0, 4, READ)
    assert view is not None
    assert view.readonly


def test_there_is_no_view_across_regions_or_of_memory_that_is_not_shared(client: Client) -> None:
    client.map(0, 1)
    client.map(1, 1, at=1)
    client.map_unshared(2, 1)
    assert client.memory.view(PAGE_SIZE - 1, 2, READ) is None
    assert client.memory.view(2 * PAGE_SIZE, 4, READ) is None


def test_a_view_for_more_than_the_region_permits_is_not_permitted(client: Client) -> None:
    client.map(0, 1, READ)
    with pytest.raises(GuestMemoryError) as caught:
        client.memory.view(0, 4, READ_WRITE)
    assert caught.value.errno == errno.EPERM


def test_a_view_that_outlives_its_region_reaches_nothing(client: Client) -> None:
    client.map(0, 1)
    stale = client.memory.view(0, 4, READ_WRITE)
    assert stale is not None
    client.unmap(0, 1)
    stale[:] = b"oops"
    assert client.file_page(0) == page_of(0)


def test_an_unmap_says_how_much_it_unmapped(client: Client) -> None:
    client.map(0, 2)
    client.map(8, 3, at=2)
    assert client.memory.unmap(0, 64 * PAGE_SIZE) == 5 * PAGE_SIZE
    client.map(0, 2)
    assert client.memory.unmap_all() == 2 * PAGE_SIZE
    assert client.memory.unmap_all() == 0


def test_a_region_that_comes_back_has_another_generation(client: Client) -> None:
    first = client.memory.map(0, PAGE_SIZE, READ)
    client.memory.unmap_all()
    assert client.memory.map(0, PAGE_SIZE, READ).generation != first.generation


def test_a_client_that_is_gone_has_no_device_left(client: Client) -> None:
    client.map(0, 1)
    client.memory.close()
    client.memory.close()
    assert errno_of(client.memory.read(0, 4)) == errno.ENODEV
    assert errno_of(client.memory.write(0, b"late")) == errno.ENODEV
    for call in (
        lambda: client.memory.view(0, 4, READ),
        lambda: client.memory.pin_pages(pages(0), READ, keep),
    ):
        with pytest.raises(GuestMemoryError) as caught:
            call()
        assert caught.value.errno == errno.ENODEV


def test_a_client_that_is_gone_maps_no_more(client: Client) -> None:
    client.memory.close()
    before = open_fds()
    with pytest.raises(DmaError) as caught:
        client.map(0, 1)
    assert caught.value.errno == errno.ENODEV
    assert open_fds() == before


def test_closing_tells_holders_and_revokes_what_they_keep(client: Client) -> None:
    client.map(0, 4)
    told: list[PinnedPages] = []
    pins = client.memory.pin_pages(pages(1), READ, told.append)
    client.memory.close()
    assert told == [pins]
    assert pins.revoked


def test_the_counters_are_those_of_the_client(client: Client) -> None:
    client.map(0, 4)
    client.map_unshared(10, 2)
    pins = client.memory.pin_pages(pages(1, 2), READ, keep)
    stats = client.memory.stats()
    assert stats == {
        "domain": "soft",
        "domain_details": client.domain.stats(),
        "regions": 2,
        "mapped_bytes": 6 * PAGE_SIZE,
        "files": 1,
        "pins": 1,
        "dma_mapped_pages": 2,
        "pinned_pages": 2,
        "retained_pages": 0,
        "retained_limit": 0,
        "locked_bytes": 2 * PAGE_SIZE,
        "locked_limit": None,
        "hits": 0,
        "misses": 2,
        "evicted": 0,
        "invalidations": 0,
        "revoked": 0,
        "messages": 0,
    }
    pins.release()


def test_two_hundred_sessions_leave_no_fd_and_no_mapping() -> None:
    domain = SoftDomain(SMALLEST_APERTURE)

    def session() -> None:
        client = Client(domain, file_pages=16)
        client.map(0, 8)
        client.map(8, 4, at=12)
        client.memory.pin_pages(pages(1, 9, 4), READ_WRITE, keep).views()
        held = client.memory.pin_pages(pages(0, 2, 9), READ, keep)
        run_to_completion(client.memory.read(0, 9 * PAGE_SIZE))
        client.memory.view(0, 16, READ)
        with pytest.raises(DmaError):
            client.map(2, 1)
        client.close()
        assert held.revoked

    session()
    gc.collect()
    fds, files, all_mappings = open_fds(), mappings(), Path("/proc/self/maps").read_text().count("\n")
    for _ in range(200):
        session()
    gc.collect()
    assert (open_fds(), mappings()) == (fds, files)
    # The interpreter's own heap may have moved by an arena or two; 200 leaks would show.
    assert Path("/proc/self/maps").read_text().count("\n") < all_mappings + 20
