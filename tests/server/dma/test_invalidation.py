"""Pins whose memory the client takes away: who is told, what is revoked, and what comes to the same address later."""

from __future__ import annotations

import errno
import os

import pytest

from devices.contract import GuestMemoryError, GuestRange, PinnedPages
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.recording import RecordingDomain
from tests.server.dma.support import (
    READ,
    READ_WRITE,
    WRITE,
    Client,
    errno_of_pin,
    keep,
    let_go,
    page_of,
    pages,
    stat,
)


def test_holders_are_told_of_an_unmap_and_their_memory_is_still_there_then(client: Client) -> None:
    client.map(0, 8)
    seen: list[bytes] = []

    def save_and_release(pins: PinnedPages) -> None:
        assert stat(client, "files") == 1
        seen.append(bytes(pins.views()[0]))
        pins.release()

    held = client.memory.pin_pages(pages(3), READ, save_and_release)
    client.unmap(0, 8)
    assert held.revoked
    assert seen == [page_of(3)]
    assert stat(client, "files") == 0


def test_only_holders_of_unmapped_pages_are_told(client: Client) -> None:
    client.map(0, 8)
    client.map(8, 8, at=8)
    told: list[PinnedPages] = []
    low = client.memory.pin_pages(pages(1), READ, told.append)
    high = client.memory.pin_pages(pages(9), READ, told.append)
    both = client.memory.pin_pages([GuestRange(7 * PAGE_SIZE, 2 * PAGE_SIZE)], READ, told.append)
    client.unmap(8, 8)
    assert told == [high, both]
    assert (low.revoked, high.revoked, both.revoked) == (False, True, True)
    assert stat(client, "pinned_pages") == 1
    assert (stat(client, "invalidations"), stat(client, "revoked")) == (1, 2)


def test_what_a_holder_does_not_release_is_revoked_and_raises(client: Client) -> None:
    client.map(0, 8)
    pins = client.memory.pin_pages(pages(1), READ_WRITE, keep)
    [stale] = pins.views()
    client.unmap(0, 8)
    assert pins.revoked
    for access in (pins.views, lambda: pins.segments, lambda: pins.dma_addr(PAGE_SIZE)):
        with pytest.raises(GuestMemoryError) as caught:
            access()
        assert caught.value.errno == errno.EINVAL
    assert stale == bytes(PAGE_SIZE)
    assert len(client.events("pin_revoked")) == 1
    pins.release()


def test_a_holder_that_releases_in_time_is_not_revoked(client: Client) -> None:
    client.map(0, 8)
    pins = client.memory.pin_pages(pages(1), READ, let_go)
    client.unmap(0, 8)
    assert pins.revoked
    assert stat(client, "revoked") == 0
    assert client.events("pin_revoked") == []


def test_a_holder_that_fails_does_not_keep_the_others_from_being_told(client: Client) -> None:
    client.map(0, 8)

    def fail(_: PinnedPages) -> None:
        raise ZeroDivisionError

    told: list[PinnedPages] = []
    held = [
        client.memory.pin_pages(pages(1), READ, fail),
        client.memory.pin_pages(pages(1, 2), READ, told.append),
    ]
    client.unmap(0, 8)
    assert told == [held[1]]
    [failure] = client.events("unmap_callback_failed")
    assert "ZeroDivisionError" in str(failure["error"])
    assert stat(client, "locked_bytes") == 0


def test_a_holder_may_release_others_while_it_is_told(client: Client) -> None:
    client.map(0, 8)
    told: list[PinnedPages] = []
    others: list[PinnedPages] = []

    def release_all(pins: PinnedPages) -> None:
        for each in (pins, *others):
            each.release()

    first = client.memory.pin_pages(pages(1), READ, release_all)
    others += [client.memory.pin_pages(pages(1), READ, told.append) for _ in range(3)]
    client.unmap(0, 8)
    assert first.revoked
    assert all(pins.revoked for pins in others)
    assert told == []


def test_what_is_being_unmapped_cannot_be_pinned_again_by_a_holder(client: Client) -> None:
    client.map(0, 8)
    client.map(8, 8, at=8)
    outcome: list[object] = []

    def pin_again(pins: PinnedPages) -> None:
        outcome.append(client.memory.pin_pages(pages(9), READ, keep))
        pins.release()
        with pytest.raises(GuestMemoryError) as caught:
            client.memory.pin_pages(pages(1), READ, keep)
        outcome.append(caught.value.errno)

    held = client.memory.pin_pages(pages(1), READ, pin_again)
    client.unmap(0, 8)
    assert held.revoked
    assert outcome[1:] == [errno.EINVAL]
    assert stat(client, "pinned_pages") == 1


def test_a_page_that_another_still_holds_cannot_be_pinned_while_it_is_unmapped(client: Client) -> None:
    """It is in the domain still, so nothing but the unmap itself says that it must not be used."""
    client.map(0, 8)
    refused: list[int | None] = []

    def pin_again(_: PinnedPages) -> None:
        with pytest.raises(GuestMemoryError) as caught:
            client.memory.pin_pages(pages(1), READ, keep)
        refused.append(caught.value.errno)

    holders = [client.memory.pin_pages(pages(1, *more), READ, pin_again) for more in ((), (3,))]
    client.unmap(0, 8)
    assert refused == [errno.EINVAL] * 2
    assert all(pins.revoked for pins in holders)
    assert stat(client, "dma_mapped_pages") == 0


def test_a_guest_page_that_comes_back_elsewhere_never_yields_the_old_page(client: Client) -> None:
    client.map(0, 8)
    old = client.memory.pin_pages(pages(1), READ, keep)
    client.unmap(0, 8)
    client.map(0, 8, READ, at=30)
    new = client.memory.pin_pages(pages(1), READ, keep)
    assert new.views()[0] == page_of(31)
    assert errno_of_pin(client, pages(1), WRITE) == errno.EPERM
    with pytest.raises(GuestMemoryError):
        old.views()
    old.release()
    assert new.views()[0] == page_of(31)


def test_an_unmap_tells_the_domain_of_pinned_pages_only(recorded: tuple[Client, RecordingDomain]) -> None:
    client, domain = recorded
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 40)
    client.memory.map(1 << 40, 1 << 40, READ, fd, 0)
    held = client.memory.pin_pages(
        [GuestRange((1 << 40) + page, 1) for page in range(0, 1 << 30, 1 << 24)], READ, keep
    )
    client.memory.unmap(1 << 40, 1 << 40)
    assert held.revoked
    assert (domain.maps, domain.unmaps) == (1, 1)
    client.memory.map(1 << 40, 1 << 40, READ)
    client.memory.unmap(1 << 40, 1 << 40)
    assert stat(client, "invalidations") == 1
