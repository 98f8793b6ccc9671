"""Observed memory: a device sees no difference, and whatever it does with shared memory is told, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.contract import GuestMemoryError, GuestRange, Look, PinnedPages, Prot
from devices.testing import FakeLog
from devices.work import ReadMessage, Request, WriteMessage
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.dma.errors import DmaError
from server.dma.memory import GuestMemoryMap
from server.trace.observed_memory import ObservedMemory
from tests.server.dma.support import READ, READ_WRITE, WRITE, keep, memfd

TOP = 1 << 64
PAGES = 16
MESSAGE = 1000
"""Bytes of the longest message."""

Region = tuple[int, int, Prot, int | None]
"""First page, pages, access, and from which page of the file; None: not shared."""

REGIONS: list[Region] = [
    (1, 3, READ_WRITE, 0),
    (4, 2, READ_WRITE, 8),
    (6, 2, READ_WRITE, None),
    (8, 1, READ, 3),
    (9, 1, READ, None),
    (10, 1, WRITE, 12),
    (11, 1, READ_WRITE, 4),
]


class Observer:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, bytes]] = []
        self.looks: list[tuple[object, list[tuple[int, int]], int, bytes]] = []

    def read(self, address: int, data: bytes | memoryview) -> None:
        self.told.append(("read", address, bytes(data)))

    def wrote(self, address: int, data: bytes | memoryview) -> None:
        self.told.append(("write", address, bytes(data)))

    def looked(
        self, pins: object, ranges: Sequence[tuple[int, int]], offset: int, views: Sequence[memoryview]
    ) -> Look:
        self.looks.append((pins, list(ranges), offset, b"".join(views)))
        return Look(views, 5, [(0, 1)])


class Client:
    """A client's memory, observed or not."""

    def __init__(self, observer: Observer | None = None, regions: Sequence[Region] = REGIONS) -> None:
        self.log = FakeLog()
        self.fd = memfd(PAGES)
        self.private = bytearray(PAGES * PAGE_SIZE)
        self.domain = SoftDomain(SMALLEST_APERTURE)
        make: Callable[..., GuestMemoryMap] = GuestMemoryMap
        arguments: list[object] = [self.log, self.domain]
        if observer is not None:
            make, arguments = ObservedMemory, [observer, *arguments]
        self.memory = make(*arguments, max_data_xfer_size=MESSAGE)
        for page, count, prot, at in regions:
            fd = None if at is None else os.dup(self.fd)
            self.memory.map(page * PAGE_SIZE, count * PAGE_SIZE, prot, fd, (at or 0) * PAGE_SIZE)

    def drive(self, work: Any, refuse_after: int = 99) -> tuple[object, list[Request]]:
        """Answer the messages of ``work``, but not more than so many; what came of it, and the messages."""
        messages: list[Request] = []
        answer: bytes | None = None
        try:
            while True:
                message = work.send(answer)
                messages.append(message)
                while len(messages) > refuse_after:
                    message = work.throw(GuestMemoryError(errno.EACCES, "refused"))
                    messages.append(message)
                answer = self.answer(message)
        except StopIteration as stop:
            return stop.value, messages
        except GuestMemoryError as error:
            return error.errno, messages

    def answer(self, message: Request) -> bytes | None:
        if isinstance(message, ReadMessage):
            return bytes(self.private[message.address : message.address + message.length])
        assert isinstance(message, WriteMessage)
        self.private[message.address : message.address + len(message.data)] = message.data
        return None

    def file(self) -> bytes:
        return os.pread(self.fd, PAGES * PAGE_SIZE, 0)

    def close(self) -> None:
        self.memory.close()
        self.domain.close()
        os.close(self.fd)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the errno of its error."""
    try:
        return call()
    except (GuestMemoryError, DmaError) as error:
        return error.errno


near = st.builds(lambda page, delta: page * PAGE_SIZE + delta, st.integers(0, 13), st.integers(-20, 20))
addresses = near | st.integers(TOP - 30, TOP) | st.integers(-5, 5)
lengths = st.integers(-1, 40) | st.sampled_from([PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE])
refusals = st.integers(0, 3) | st.just(99)
accesses = st.one_of(
    st.tuples(st.just("read"), addresses, lengths, refusals),
    st.tuples(st.just("write"), addresses, lengths, refusals),
    st.tuples(st.just("view"), addresses, lengths, st.sampled_from([READ, WRITE, READ_WRITE])),
    st.tuples(st.just("pin"), addresses, lengths, st.sampled_from([READ, WRITE, READ_WRITE])),
    st.tuples(st.just("unmap"), st.integers(0, 12), st.integers(1, 3), st.just(0)),
)


def shared_parts(regions: Sequence[Region], address: int, length: int) -> list[tuple[int, int]]:
    """Of a range that is mapped, the parts that are shared, as addresses and lengths, region by region."""
    parts = []
    for page, count, _, at in sorted(regions):
        start, end = max(address, page * PAGE_SIZE), min(address + length, (page + count) * PAGE_SIZE)
        if at is not None and start < end:
            parts.append((start, end - start))
    return parts


class Pair:
    """A client whose memory is observed, and one whose is not: what is done to one is done to the other."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.plain, self.observed = Client(), Client(self.observer)
        self.regions = list(REGIONS)
        self.clients = (self.plain, self.observed)
        for client in self.clients:
            client.memory.dirty.start()

    def read(self, address: int, length: int, refuse_after: int) -> None:
        expected = self.plain.drive(self.plain.memory.read(address, length), refuse_after)
        assert self.observed.drive(self.observed.memory.read(address, length), refuse_after) == expected
        if isinstance(expected[0], bytes):
            self.check_told("read", address, expected[0])

    def write(self, address: int, length: int, refuse_after: int) -> None:
        data = os.urandom(max(length, 0))
        expected = self.plain.drive(self.plain.memory.write(address, data), refuse_after)
        observed = self.observed.memory.write(address, memoryview(data))
        assert self.observed.drive(observed, refuse_after) == expected
        if expected[0] is None:
            self.check_told("write", address, data)

    def view(self, address: int, length: int, prot: Prot) -> None:
        view = outcome(partial(self.plain.memory.view, address, length, prot))
        seen = outcome(partial(self.observed.memory.view, address, length, prot))
        assert seen == (view if isinstance(view, int) else None)

    def pin(self, address: int, length: int, prot: Prot) -> None:
        found = outcome(partial(self.observed.memory.pin_pages, [GuestRange(address, length)], prot, keep))
        if prot & WRITE:
            assert found == errno.EFAULT
            return
        expected = outcome(partial(self.plain.memory.pin_pages, [GuestRange(address, length)], prot, keep))
        if isinstance(expected, int):
            assert found == expected
            return
        assert b"".join(found.views()) == b"".join(expected.views())
        assert found.length == expected.length
        found.release()
        expected.release()

    def unmap(self, page: int, count: int, _: int) -> None:
        start, size = page * PAGE_SIZE, count * PAGE_SIZE
        results = [outcome(partial(client.memory.unmap, start, size)) for client in self.clients]
        assert results[0] == results[1]
        inside = [one for one in self.regions if page <= one[0] < page + count]
        if results[0] == sum(one[1] for one in inside) * PAGE_SIZE:
            self.regions = [one for one in self.regions if one not in inside]

    def check_told(self, kind: str, address: int, data: bytes) -> None:
        """What was told is what of ``data`` is in shared memory."""
        told = [one for one in self.observer.told if one[2]]
        parts = shared_parts(self.regions, address, len(data))
        assert told == [(kind, at, data[at - address :][:size]) for at, size in parts]

    def check(self) -> None:
        assert self.plain.file() == self.observed.file()
        assert self.plain.private == self.observed.private
        bitmaps = [one.memory.dirty_bitmap(0, PAGES * PAGE_SIZE, PAGE_SIZE) for one in self.clients]
        assert bitmaps[0] == bitmaps[1]


@given(st.lists(accesses, max_size=12))
@example([("read", 5 * PAGE_SIZE, 4 * PAGE_SIZE, 99), ("write", 3 * PAGE_SIZE - 5, 5 * PAGE_SIZE, 2)])
def test_a_device_gets_the_same_bytes_and_errors_and_what_is_shared_is_told(
    done: list[tuple[str, int, int, Any]],
) -> None:
    pair = Pair()
    try:
        for kind, *arguments in done:
            pair.observer.told.clear()
            getattr(pair, kind)(*arguments)
            pair.check()
    finally:
        pair.plain.close()
        pair.observed.close()


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def client(observer: Observer) -> Iterator[Client]:
    client = Client(observer)
    yield client
    client.close()


RANGES = [GuestRange(2 * PAGE_SIZE, PAGE_SIZE), GuestRange(PAGE_SIZE + 100, 50)]


def test_what_of_a_pin_is_looked_at_is_told(client: Client, observer: Observer) -> None:
    pin = client.memory.pin_pages(RANGES, READ, keep)
    file = client.file()
    memory = file[PAGE_SIZE : 2 * PAGE_SIZE] + file[100:150]
    parts = [(2 * PAGE_SIZE, 3 * PAGE_SIZE), (PAGE_SIZE + 100, PAGE_SIZE + 150)]
    assert observer.looks == []
    assert b"".join(pin.views()) == memory
    look = pin.look(PAGE_SIZE - 10, 20)
    assert b"".join(look.views) == memory[PAGE_SIZE - 10 :][:20]
    assert (look.version, look.changes) == (5, [(0, 1)])
    assert observer.looks == [(pin, parts, 0, memory), (pin, parts, PAGE_SIZE - 10, memory[-60:-40])]
    assert all(view.readonly for view in look.views)


def test_a_part_that_is_looked_at_again_shows_what_is_there_now(client: Client, observer: Observer) -> None:
    pin = client.memory.pin_pages(RANGES, READ, keep)
    parts = [(0, 30), (0, 30), (PAGE_SIZE - 10, 20), (0, 30), (0, PAGE_SIZE), (10, 20), (0, 30)]
    for number, (offset, length) in enumerate(parts):
        os.pwrite(client.fd, bytes([number]) * 2 * PAGE_SIZE, 0)
        os.pwrite(client.fd, b"start", PAGE_SIZE)
        file = client.file()
        memory = file[PAGE_SIZE : 2 * PAGE_SIZE] + file[100:150]
        assert b"".join(pin.look(offset, length).views) == memory[offset : offset + length]
        assert observer.looks[-1][2:] == (offset, memory[offset : offset + length])


def test_a_pin_has_the_addresses_of_the_cache(client: Client) -> None:
    pin = client.memory.pin_pages(RANGES, READ, keep)
    assert pin.length == sum(segment.length for segment in pin.segments) == PAGE_SIZE + 50
    assert pin.dma_addr(2 * PAGE_SIZE) == pin.segments[0].dma_addr
    assert list(pin.dma_addrs([PAGE_SIZE + 100])) == [pin.segments[1].dma_addr]
    with pytest.raises(GuestMemoryError):
        pin.dma_addr(4 * PAGE_SIZE)


def test_a_pin_is_released_once_and_at_the_end_of_a_block(client: Client) -> None:
    with client.memory.pin_pages(RANGES, READ, keep) as pin:
        assert client.memory.stats()["pinned_pages"] == 2
        assert not pin.revoked
    assert pin.revoked
    pin.release()
    assert client.memory.stats()["pins"] == 0
    for use in (pin.views, lambda: pin.look(0, 1), lambda: pin.segments, lambda: pin.dma_addr(PAGE_SIZE)):
        with pytest.raises(GuestMemoryError) as caught:
            use()
        assert caught.value.errno == errno.EINVAL


def test_a_holder_is_told_of_its_own_handle_when_the_client_takes_the_memory_away(client: Client) -> None:
    told: list[PinnedPages] = []

    def on_unmap(pins: PinnedPages) -> None:
        told.append(pins)
        assert not pins.revoked
        pins.release()

    pin = client.memory.pin_pages(RANGES, READ, on_unmap)
    other = client.memory.pin_pages([GuestRange(4 * PAGE_SIZE, 1)], READ, on_unmap)
    client.memory.unmap(PAGE_SIZE, 3 * PAGE_SIZE)
    assert told == [pin]
    assert pin.revoked
    assert not other.revoked


def test_what_a_holder_keeps_is_revoked(client: Client) -> None:
    pin = client.memory.pin_pages(RANGES, READ, keep)
    client.memory.unmap(PAGE_SIZE, 3 * PAGE_SIZE)
    assert pin.revoked


def test_a_holder_may_ask_for_time(client: Client) -> None:
    pin = client.memory.pin_pages(RANGES, READ, lambda _: True)
    unmapping = client.memory.begin_unmap(PAGE_SIZE, 3 * PAGE_SIZE)
    assert unmapping.pending
    assert not pin.revoked
    pin.release()
    assert not unmapping.pending
    unmapping.finish()


def test_a_reset_revokes_what_is_pinned(client: Client) -> None:
    pin = client.memory.pin_pages(RANGES, READ, keep)
    client.memory.reset()
    assert pin.revoked


def test_a_pin_that_is_dropped_is_a_leak_of_who_pinned_it(client: Client) -> None:
    pin = client.memory.pin_pages(RANGES, READ, keep)
    del pin
    assert client.memory.stats()["pins"] == 0
    [leak] = [fields for _, event, fields in client.log.events if event == "pin_leaked"]
    assert leak["bytes"] == PAGE_SIZE + 50
    assert str(leak["pinned_at"]).startswith(__file__)


@pytest.mark.parametrize(
    ("where", "prot", "expected"),
    [
        (GuestRange(6 * PAGE_SIZE, 1), READ, errno.EFAULT),
        (GuestRange(PAGE_SIZE, 1), WRITE, errno.EFAULT),
        (GuestRange(PAGE_SIZE, 1), READ_WRITE, errno.EFAULT),
        (GuestRange(0, 1), READ, errno.EINVAL),
        (GuestRange(10 * PAGE_SIZE, 1), READ, errno.EPERM),
        (GuestRange(TOP - 1, 2), READ, errno.EOVERFLOW),
        (GuestRange(PAGE_SIZE, 0), READ, errno.EINVAL),
    ],
)
def test_what_cannot_be_pinned_is_refused(
    client: Client, where: GuestRange, prot: Prot, expected: int
) -> None:
    assert outcome(lambda: client.memory.pin_pages([where], prot, keep)) == expected
    assert client.memory.stats()["pins"] == 0


def test_when_the_client_is_gone_nothing_is_reached_or_told(client: Client, observer: Observer) -> None:
    client.memory.close()
    assert client.drive(client.memory.read(PAGE_SIZE, 1))[0] == errno.ENODEV
    assert client.drive(client.memory.write(PAGE_SIZE, b"x"))[0] == errno.ENODEV
    assert outcome(lambda: client.memory.pin_pages(RANGES, READ, keep)) == errno.ENODEV
    assert outcome(lambda: client.memory.view(PAGE_SIZE, 1, READ)) == errno.ENODEV
    assert (observer.told, observer.looks) == ([], [])


def test_it_says_that_it_is_observed() -> None:
    assert ObservedMemory.observed
    assert not GuestMemoryMap.observed
