from __future__ import annotations

import errno
import gc

import pytest

from devices.contract import GuestMemoryError, GuestRange, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.recording import RecordingDomain
from tests.server.dma.support import (
    READ,
    READ_WRITE,
    WRITE,
    Client,
    errno_of_pin,
    keep,
    mappings,
    memfd,
    page_of,
    pages,
    stat,
)

TOP = 1 << 64


def test_scattered_pages_are_one_segment_and_one_view(client: Client) -> None:
    client.map(0, 64)
    pins = client.memory.pin_pages(pages(9, 2, 3, 40), READ, keep)
    assert [segment.length for segment in pins.segments] == [4 * PAGE_SIZE]
    [view] = pins.views()
    assert view == b"".join(map(page_of, (9, 2, 3, 40)))
    assert view.readonly
    assert pins.length == 4 * PAGE_SIZE


def test_a_run_crosses_borders_of_regions_in_one_piece(client: Client) -> None:
    client.map(0, 2, at=10)
    client.map(2, 3, at=40)
    client.map(5, 1, at=13)
    pins = client.memory.pin_pages([GuestRange(PAGE_SIZE, 5 * PAGE_SIZE)], READ, keep)
    [view] = pins.views()
    assert view == b"".join(map(page_of, (11, 40, 41, 42, 13)))


def test_unaligned_ends_pin_their_whole_pages_and_show_only_the_range(client: Client) -> None:
    client.map(0, 8)
    ranges = [GuestRange(PAGE_SIZE + 8, 16), GuestRange(PAGE_SIZE + 24, 2 * PAGE_SIZE)]
    pins = client.memory.pin_pages(ranges, READ, keep)
    [view] = pins.views()
    assert view == (page_of(1) + page_of(2) + page_of(3))[8 : 24 + 2 * PAGE_SIZE]
    assert stat(client, "pinned_pages") == 3


def test_ranges_that_share_a_page_map_it_once(recorded: tuple[Client, RecordingDomain]) -> None:
    client, domain = recorded
    pins = client.memory.pin_pages([GuestRange(0, 100), GuestRange(200, 100), GuestRange(50, 10)], READ, keep)
    assert len(domain.pages) == 1
    assert [segment.length for segment in pins.segments] == [100, 100, 10]
    pins.release()
    assert domain.pages == {}


def test_a_page_is_mapped_once_and_unmapped_when_its_last_holder_lets_go(
    recorded: tuple[Client, RecordingDomain],
) -> None:
    client, domain = recorded
    first = client.memory.pin_pages([GuestRange(0, 8 * PAGE_SIZE)], READ, keep)
    second = client.memory.pin_pages([GuestRange(4 * PAGE_SIZE, 8 * PAGE_SIZE)], READ, keep)
    third = client.memory.pin_pages(pages(5), READ, keep)
    assert sorted(page.offset // PAGE_SIZE for page in domain.pages.values()) == list(range(12))
    assert stat(client, "pinned_pages") == 12
    assert second.dma_addr(5 * PAGE_SIZE) == first.dma_addr(5 * PAGE_SIZE) == third.dma_addr(5 * PAGE_SIZE)
    first.release()
    assert sorted(page.offset // PAGE_SIZE for page in domain.pages.values()) == list(range(4, 12))
    second.release()
    assert sorted(page.offset // PAGE_SIZE for page in domain.pages.values()) == [5]
    third.release()
    assert domain.pages == {}
    assert stat(client, "locked_bytes") == 0


def test_pinning_what_is_pinned_asks_nothing_of_the_domain(recorded: tuple[Client, RecordingDomain]) -> None:
    client, domain = recorded
    held = client.memory.pin_pages([GuestRange(0, 8 * PAGE_SIZE)], READ, keep)
    client.memory.pin_pages(pages(3, 7), READ, keep).release()
    assert (domain.maps, domain.unmaps) == (1, 0)
    assert (stat(client, "misses"), stat(client, "hits")) == (8, 2)
    held.release()


def test_releasing_twice_does_nothing(client: Client) -> None:
    client.map(0, 4)
    held = client.memory.pin_pages(pages(1), READ, keep)
    pins = client.memory.pin_pages(pages(1), READ, keep)
    pins.release()
    pins.release()
    assert held.views()[0] == page_of(1)
    assert pins.revoked


def test_a_pin_is_a_context_manager(client: Client) -> None:
    client.map(0, 4)
    with client.memory.pin_pages(pages(1), READ, keep) as pins:
        assert not pins.revoked
    assert pins.revoked
    assert stat(client, "pins") == 0


def test_a_pin_that_its_holder_drops_is_logged_and_released(client: Client) -> None:
    client.map(0, 4)
    client.memory.pin_pages(pages(1, 2), READ, keep)
    gc.collect()
    assert stat(client, "pins") == 0
    assert stat(client, "locked_bytes") == 0
    [leak] = client.events("pin_leaked")
    assert leak["bytes"] == 2 * PAGE_SIZE
    assert str(leak["pinned_at"]).startswith(__file__)


def test_two_guest_pages_that_alias_one_page_of_the_file_are_two_entries(
    recorded: tuple[Client, RecordingDomain],
) -> None:
    client, domain = recorded
    client.map(100, 4, at=0)
    first = client.memory.pin_pages(pages(1), READ, keep)
    second = client.memory.pin_pages(pages(101), READ, keep)
    assert first.segments[0].dma_addr != second.segments[0].dma_addr
    first.release()
    assert list(domain.pages) == [second.segments[0].dma_addr]
    assert client.memory.stats()["pinned_pages"] == 1
    second.release()


def test_a_write_pin_of_pages_pinned_to_read_makes_them_writable_where_they_are(
    recorded: tuple[Client, RecordingDomain],
) -> None:
    client, domain = recorded
    reader = client.memory.pin_pages([GuestRange(0, 4 * PAGE_SIZE)], READ, keep)
    writer = client.memory.pin_pages([GuestRange(PAGE_SIZE, 4 * PAGE_SIZE)], READ_WRITE, keep)
    assert [writer.dma_addr(page * PAGE_SIZE) for page in (1, 2, 3)] == [
        reader.dma_addr(page * PAGE_SIZE) for page in (1, 2, 3)
    ]
    assert [page.offset // PAGE_SIZE for page in domain.pages.values() if page.writable] == [1, 2, 3, 4]
    reader.release()
    writer.release()


def test_an_upgrade_stays_off_neighbours_that_must_not_be_written() -> None:
    domain = RecordingDomain()
    client = Client(domain)
    client.map(0, 2, READ)
    client.map(2, 2, at=2)
    reader = client.memory.pin_pages([GuestRange(0, 4 * PAGE_SIZE)], READ, keep)
    inner = client.memory.pin_pages(pages(1), READ, keep)
    inner.release()
    writer = client.memory.pin_pages(pages(2), WRITE, keep)
    assert [page.offset // PAGE_SIZE for page in domain.pages.values() if page.writable] == [2]
    reader.release()
    writer.release()
    client.close()


def test_a_page_made_writable_lends_that_to_no_neighbour(recorded: tuple[Client, RecordingDomain]) -> None:
    client, domain = recorded
    reader = client.memory.pin_pages([GuestRange(0, 4 * PAGE_SIZE)], READ, keep)
    client.memory.pin_pages(pages(0), WRITE, keep).release()
    writer = client.memory.pin_pages(pages(2), WRITE, keep)
    assert [page.offset // PAGE_SIZE for page in domain.pages.values() if page.writable] == [0, 2]
    reader.release()
    writer.release()


def test_a_page_that_may_be_read_lends_that_to_no_neighbour(client: Client) -> None:
    client.map(0, 2)
    client.map(2, 2, WRITE, at=2)
    writer = client.memory.pin_pages([GuestRange(0, 4 * PAGE_SIZE)], WRITE, keep)
    for page in (0, 1):
        client.memory.pin_pages(pages(page), READ, keep).release()
    assert errno_of_pin(client, [GuestRange(0, 4 * PAGE_SIZE)], READ) == errno.EPERM
    writer.release()


def test_a_write_through_an_upgraded_pin_reaches_the_client(client: Client) -> None:
    client.map(0, 4)
    reader = client.memory.pin_pages(pages(1, 3), READ, keep)
    writer = client.memory.pin_pages(pages(3), WRITE, keep)
    writer.views()[0][:5] = b"drawn"
    assert client.file_page(3)[:5] == b"drawn"
    assert bytes(reader.views()[0][PAGE_SIZE : PAGE_SIZE + 5]) == b"drawn"
    assert reader.views()[0].readonly


@pytest.mark.parametrize(
    ("ranges", "prot", "expected"),
    [
        ([GuestRange(0, 0)], READ, errno.EINVAL),
        ([GuestRange(0, -1)], READ, errno.EINVAL),
        ([GuestRange(-PAGE_SIZE, PAGE_SIZE)], READ, errno.EINVAL),
        (pages(1), Prot(0), errno.EINVAL),
        (pages(1, 50), READ, errno.EINVAL),
        ([GuestRange(6 * PAGE_SIZE, 5 * PAGE_SIZE)], READ, errno.EINVAL),
        ([GuestRange(TOP - 1, 2)], READ, errno.EOVERFLOW),
        ([GuestRange(PAGE_SIZE, TOP)], READ, errno.EOVERFLOW),
        (pages(1, 21), WRITE, errno.EPERM),
        (pages(1, 21), READ_WRITE, errno.EPERM),
        (pages(1, 26), READ, errno.EPERM),
        (pages(1, 31), READ, errno.EFAULT),
    ],
)
def test_a_pin_that_cannot_be_had_changes_nothing(
    client: Client, ranges: list[GuestRange], prot: Prot, expected: int
) -> None:
    client.map(0, 8)
    client.map(20, 4, READ)
    client.map(25, 4, WRITE)
    client.map_unshared(30, 4)
    held = client.memory.pin_pages(pages(2), READ, keep)
    mapped = mappings()
    assert errno_of_pin(client, ranges, prot) == expected
    assert mappings() == mapped
    assert held.views()[0] == page_of(2)


def test_reading_a_write_only_page_stays_forbidden_while_it_is_pinned_for_writing(client: Client) -> None:
    client.map(0, 4, WRITE)
    writer = client.memory.pin_pages(pages(1), WRITE, keep)
    assert errno_of_pin(client, pages(1), READ) == errno.EPERM
    writer.release()


def test_the_limit_counts_every_page_once_and_leaves_nothing_half_pinned() -> None:
    domain = RecordingDomain()
    client = Client(domain, max_pinned=4 * PAGE_SIZE)
    client.map(0, 16)
    first = client.memory.pin_pages(pages(0, 1, 2), READ, keep)
    again = client.memory.pin_pages(pages(0, 1, 2, 2, 1), READ, keep)
    assert errno_of_pin(client, pages(2, 3, 4)) == errno.ENOMEM
    assert len(domain.pages) == 3
    last = client.memory.pin_pages(pages(3, 2), READ, keep)
    assert errno_of_pin(client, pages(9)) == errno.ENOMEM
    for pins in (first, again, last):
        pins.release()
    assert domain.pages == {}
    client.close()


def test_a_domain_that_is_full_leaves_nothing_half_pinned() -> None:
    domain = RecordingDomain(max_pages=4)
    client = Client(domain)
    client.map(0, 16)
    held = client.memory.pin_pages(pages(1), READ, keep)
    assert errno_of_pin(client, [GuestRange(0, 5 * PAGE_SIZE)]) == errno.ENOMEM
    assert len(domain.pages) == 1
    held.release()
    client.close()


def test_an_upgrade_that_fails_leaves_nothing_half_pinned(
    recorded: tuple[Client, RecordingDomain], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, domain = recorded
    held = client.memory.pin_pages(pages(1), READ, keep)

    def refuse(_dma_addr: int, _length: int) -> None:
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr(domain, "make_writable", refuse)
    assert errno_of_pin(client, pages(0, 1, 2), WRITE) == errno.ENOMEM
    assert len(domain.pages) == 1
    held.release()
    assert domain.pages == {}


def test_a_domain_without_a_page_table_gives_segments_as_it_finds_them() -> None:
    domain = RecordingDomain(longest_segment=PAGE_SIZE)
    client = Client(domain)
    client.map(0, 16)
    pins = client.memory.pin_pages([GuestRange(100, 3 * PAGE_SIZE)], READ, keep)
    assert [segment.length for segment in pins.segments] == [PAGE_SIZE - 100, PAGE_SIZE, PAGE_SIZE, 100]
    found = [domain.pages[pins.dma_addr(page * PAGE_SIZE)].offset // PAGE_SIZE for page in range(4)]
    assert found == [0, 1, 2, 3]
    assert b"".join(pins.views()) == b"".join(map(page_of, range(4)))[100 : 100 + 3 * PAGE_SIZE]
    pins.release()
    assert domain.pages == {}
    client.close()


def test_the_dma_addr_of_a_page_outside_the_pin_is_invalid(client: Client) -> None:
    client.map(0, 16)
    pins = client.memory.pin_pages(pages(1, 2, 7), READ, keep)
    other = client.memory.pin_pages(pages(4), READ, keep)
    assert pins.dma_addr(7 * PAGE_SIZE + 9) == pins.segments[0].dma_addr + 2 * PAGE_SIZE + 9
    for page in (0, 3, 4, 8):
        with pytest.raises(GuestMemoryError, match="not part of this pin"):
            pins.dma_addr(page * PAGE_SIZE)
    other.release()


def test_overlapping_pins_that_come_and_go_do_not_cut_a_run_for_good(client: Client) -> None:
    client.map(0, 64)
    held = client.memory.pin_pages([GuestRange(0, 64 * PAGE_SIZE)], READ, keep)
    for page in range(1, 60):
        client.memory.pin_pages(pages(page, page + 3), READ, keep).release()
    assert len(client.memory.pinned_runs) == 1
    held.release()


def test_pages_of_different_files_make_one_view(client: Client) -> None:
    client.map(0, 4)
    client.memory.map(4 * PAGE_SIZE, 4 * PAGE_SIZE, READ, memfd(4, first=900), 0)
    pins = client.memory.pin_pages([GuestRange(3 * PAGE_SIZE, 2 * PAGE_SIZE)], READ, keep)
    assert pins.views()[0] == page_of(3) + page_of(900)
