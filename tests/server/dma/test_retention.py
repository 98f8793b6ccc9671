"""Pages that nobody pins any more stay mapped within a budget, and go when something needs their room."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from devices.contract import DmaSegment, GuestMemoryError
from server.dma.address_space import PAGE_SIZE
from server.dma.domain import FileRun
from server.dma.domains.recording import RecordingDomain
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from tests.server.dma.support import READ, READ_WRITE, Client, keep, let_go, mappings, pages


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(RecordingDomain(), retain=8 * PAGE_SIZE)
    client.map(0, 32)
    yield client
    client.close()


def retained(client: Client) -> list[int]:
    """The guest pages that are mapped and not pinned."""
    return [
        page
        for run in client.memory.pinned_runs
        if not run.pins
        for page in range(run.start // PAGE_SIZE, run.end // PAGE_SIZE)
    ]


def use(client: Client, *numbers: int) -> None:
    client.memory.pin_pages(pages(*numbers), READ, let_go).release()


def test_attaching_and_detaching_the_same_pages_asks_the_domain_once() -> None:
    domain = RecordingDomain()
    client = Client(domain, retain=64 * PAGE_SIZE)
    client.map(0, 32)
    for _ in range(10):
        use(client, 3, 9, 1)
    assert (domain.maps, domain.unmaps) == (1, 0)
    stats = client.memory.stats()
    assert (stats["misses"], stats["hits"]) == (3, 27)
    assert (stats["pinned_pages"], stats["retained_pages"], stats["dma_mapped_pages"]) == (0, 3, 3)
    client.close()
    assert domain.pages == {}


def test_the_least_recently_used_go_first(client: Client) -> None:
    for page in range(8):
        use(client, page)
    use(client, 0)
    use(client, 20, 21)
    assert retained(client) == [0, 3, 4, 5, 6, 7, 20, 21]
    assert client.memory.stats()["evicted"] == 2


def test_what_is_pinned_again_is_where_it_was(client: Client) -> None:
    first = client.memory.pin_pages(pages(4, 2), READ, keep)
    segments = first.segments
    first.release()
    again = client.memory.pin_pages(pages(4, 2), READ_WRITE, keep)
    assert again.segments == segments
    again.release()


def test_more_than_the_budget_is_kept_in_part(client: Client) -> None:
    use(client, *range(20))
    assert len(retained(client)) == 8


def test_retained_pages_make_room_for_others_under_the_limit() -> None:
    client = Client(RecordingDomain(), max_pinned=6 * PAGE_SIZE, retain=6 * PAGE_SIZE)
    client.map(0, 32)
    use(client, 0, 1)
    use(client, 2, 3)
    held = client.memory.pin_pages(pages(1, 10, 11, 12, 13), READ, keep)
    assert retained(client) == [3]
    with pytest.raises(GuestMemoryError) as caught:
        client.memory.pin_pages(pages(20, 21), READ, keep)
    assert caught.value.errno == errno.ENOMEM
    assert retained(client) == [3]
    held.release()
    client.close()


def test_retained_pages_make_room_in_a_domain_that_is_full() -> None:
    client = Client(RecordingDomain(max_pages=4), retain=8 * PAGE_SIZE)
    client.map(0, 32)
    use(client, 1, 5, 9)
    held = client.memory.pin_pages(pages(2, 4, 9), READ, keep)
    assert retained(client) == []
    held.release()
    client.close()


def test_a_domain_that_turns_out_to_be_full_gets_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = RecordingDomain()
    client = Client(domain, retain=8 * PAGE_SIZE)
    client.map(0, 32)
    use(client, 1, 5)
    map_runs = domain.map_runs

    def full(runs: list[FileRun], *, writable: bool) -> list[DmaSegment]:
        if domain.pages:
            raise OSError(errno.ENOMEM, "full")
        return map_runs(runs, writable=writable)

    monkeypatch.setattr(domain, "map_runs", full)
    with client.memory.pin_pages(pages(7), READ, keep):
        assert retained(client) == []
        with pytest.raises(GuestMemoryError, match="full"):
            client.memory.pin_pages(pages(8), READ, keep)
    client.close()


def test_unmapped_memory_is_not_retained(client: Client) -> None:
    use(client, 1, 2)
    client.memory.unmap(0, 32 * PAGE_SIZE)
    assert client.memory.pinned_runs == []
    client.map(0, 32, at=16)
    with client.memory.pin_pages(pages(1), READ, keep) as pins:
        assert bytes(pins.views()[0]) == client.file_page(17)


def test_a_reset_leaves_nothing_mapped(client: Client) -> None:
    use(client, 1, 2)
    client.memory.reset()
    assert client.memory.pinned_runs == []


def test_retained_pages_of_the_soft_domain_stay_mapped_in_this_process() -> None:
    client = Client(SoftDomain(SMALLEST_APERTURE), retain=8 * PAGE_SIZE)
    client.map(0, 32)
    idle = mappings()
    use(client, 3, 9)
    assert mappings() == idle + 2
    client.close()
