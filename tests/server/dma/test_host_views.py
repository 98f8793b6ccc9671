"""The soft domain shows every list in one piece, also where its pages were mapped before, elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from devices.contract import GuestMemoryError, GuestRange
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from tests.server.dma.support import READ, READ_WRITE, Client, keep, mappings, page_of, pages


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(SoftDomain(SMALLEST_APERTURE))
    client.map(0, 32)
    yield client
    client.close()


def test_pages_that_others_have_pinned_are_shown_in_one_piece_with_the_rest(client: Client) -> None:
    other = client.memory.pin_pages(pages(5, 3), READ, keep)
    pins = client.memory.pin_pages(pages(1, 3, 2, 5), READ, keep)
    assert len(pins.segments) > 1
    [view] = pins.views()
    assert bytes(view) == b"".join(map(page_of, (1, 3, 2, 5)))
    assert view.readonly
    other.release()
    assert bytes(view) == b"".join(map(page_of, (1, 3, 2, 5)))
    pins.release()


def test_the_dma_addrs_are_those_of_the_one_mapping(client: Client) -> None:
    other = client.memory.pin_pages(pages(3), READ, keep)
    pins = client.memory.pin_pages(pages(1, 3), READ_WRITE, keep)
    pins.views()[0][PAGE_SIZE:][:5] = b"hello"
    assert pins.dma_addr(3 * PAGE_SIZE) == other.dma_addr(3 * PAGE_SIZE)
    assert bytes(other.views()[0][:5]) == b"hello"
    assert client.file_page(3)[:5] == b"hello"
    assert client.memory.stats()["dma_mapped_pages"] == 2
    for one in (pins, other):
        one.release()


def test_unaligned_ends_are_left_out(client: Client) -> None:
    other = client.memory.pin_pages(pages(4), READ, keep)
    pins = client.memory.pin_pages([GuestRange(3 * PAGE_SIZE + 100, 2 * PAGE_SIZE)], READ, keep)
    assert len(pins.segments) == 3
    [view] = pins.views()
    assert bytes(view) == (page_of(3) + page_of(4) + page_of(5))[100 : 100 + 2 * PAGE_SIZE]
    for one in (pins, other):
        one.release()


def test_what_is_shown_twice_is_gone_when_it_is_released_revoked_or_dropped(client: Client) -> None:
    gc.collect()  # what earlier tests left
    idle = mappings()
    for end in ("release", "revoke", "drop"):
        other = client.memory.pin_pages(pages(3), READ, keep)
        pins = client.memory.pin_pages(pages(1, 3), READ, keep)
        assert len(pins.views()) == 1
        if end == "release":
            pins.release()
        elif end == "revoke":
            client.memory.reset()
        else:
            del pins
            gc.collect()
            client.memory.stats()
        other.release()
        assert mappings() == idle


def test_ranges_that_do_not_meet_on_page_borders_are_several_pieces(client: Client) -> None:
    other = client.memory.pin_pages(pages(3), READ, keep)
    pins = client.memory.pin_pages([GuestRange(PAGE_SIZE, 100), *pages(3)], READ, keep)
    assert [len(view) for view in pins.views()] == [100, PAGE_SIZE]
    for one in (pins, other):
        one.release()


def test_without_room_for_more_mappings_it_is_shown_in_pieces(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = client.memory.pin_pages(pages(3), READ, keep)
    pins = client.memory.pin_pages(pages(1, 3), READ, keep)
    monkeypatch.setattr(client.domain, "_max_mappings", 4)
    assert len(pins.views()) == 2
    for one in (pins, other):
        one.release()


def test_a_view_of_pages_that_are_no_longer_pinned_is_an_error(client: Client) -> None:
    pins = client.memory.pin_pages(pages(1), READ, keep)
    client.memory.unmap(0, 32 * PAGE_SIZE)
    for ask in (pins.views, lambda: pins.segments, lambda: pins.dma_addrs([PAGE_SIZE])):
        with pytest.raises(GuestMemoryError, match="no longer pinned"):
            ask()
