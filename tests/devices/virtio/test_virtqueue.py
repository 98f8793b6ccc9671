"""Split virtqueues: what the device makes of rings, sound and broken (virtio 1.3, 2.7)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from struct import pack, pack_into, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.contract import GuestMemoryError, GuestRange, OnUnmap, Prot
from devices.testing import FakeHost, FakeMemory, FakePinnedPages
from devices.virtio.chain import Chain
from devices.virtio.device import MalformedRequest
from devices.virtio.virtqueue import RingLayout, Virtqueue

NEXT, WRITE, INDIRECT = 1, 2, 4
INDIRECT_DESC, EVENT_IDX = 1 << 28, 1 << 29
TABLE, AVAILABLE, USED, INDIRECT_TABLE, BUFFERS = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
SIZE = 8


class Guest:
    """A ring in memory, written by hand, and the device's end of it."""

    def __init__(self, *, shared: bool = True, size: int = SIZE, features: int = INDIRECT_DESC) -> None:
        self.host = FakeHost(1 << 17, shared=shared)
        self.size = size
        self.queue = Virtqueue(RingLayout(size, TABLE, AVAILABLE, USED), features)
        self.queue.open(self.host.memory)

    def describe(self, *descriptors: tuple[int, int, int, int], table: int = TABLE, first: int = 0) -> None:
        for index, descriptor in enumerate(descriptors, first):
            self.poke(table + 16 * index, pack("<QIHH", *descriptor))

    def offer(self, heads: Iterable[int], index: int | None = None) -> None:
        count = 0
        for count, head in enumerate(heads, 1):
            self.poke(AVAILABLE + 2 + 2 * count, pack("<H", head))
        self.poke(AVAILABLE + 2, pack("<H", count if index is None else index))

    def poke(self, address: int, data: bytes) -> None:
        self.host.memory.data[address : address + len(data)] = data

    def pop(self) -> Chain | None:
        chain = self.host.drive(self.queue.pop())
        assert chain is None or isinstance(chain, Chain)
        return chain

    def popped(self) -> Chain:
        chain = self.pop()
        assert chain is not None
        return chain

    def push(self, head: int, written: int) -> None:
        self.host.drive(self.queue.push(head, written))

    def wants_interrupt(self) -> bool:
        return bool(self.host.drive(self.queue.wants_interrupt()))

    def peek16(self, address: int) -> int:
        (value,) = unpack_from("<H", self.host.memory.data, address)
        return int(value)


@pytest.fixture(params=[True, False], ids=["shared", "by message"])
def guest(request: pytest.FixtureRequest) -> Guest:
    return Guest(shared=request.param)


def test_an_empty_ring_gives_nothing(guest: Guest) -> None:
    assert guest.pop() is None


def test_a_chain_lists_its_readable_and_writable_parts_in_order(guest: Guest) -> None:
    guest.describe((0x8000, 16, NEXT, 1), (0x9000, 32, NEXT, 5))
    guest.describe((0xA000, 64, NEXT | WRITE, 2), first=5)
    guest.describe((0xB000, 8, WRITE, 0), first=2)
    guest.offer([0])
    chain = guest.popped()
    assert chain.head == 0
    assert chain.readable == [GuestRange(0x8000, 16), GuestRange(0x9000, 32)]
    assert chain.writable == [GuestRange(0xA000, 64), GuestRange(0xB000, 8)]
    assert (chain.readable_length, chain.writable_length) == (48, 72)
    assert guest.pop() is None


def test_an_indirect_table_may_follow_direct_descriptors(guest: Guest) -> None:
    guest.describe((0x8000, 16, NEXT, 1), (INDIRECT_TABLE, 32, INDIRECT | WRITE, 0))
    guest.describe((0x9000, 4, NEXT, 1), (0xA000, 4, WRITE, 0), table=INDIRECT_TABLE)
    guest.offer([0])
    chain = guest.popped()
    assert chain.readable == [GuestRange(0x8000, 16), GuestRange(0x9000, 4)]
    assert chain.writable == [GuestRange(0xA000, 4)]


def test_an_indirect_chain_may_be_longer_than_the_queue(guest: Guest) -> None:
    guest.describe((INDIRECT_TABLE, 16 * 100, INDIRECT, 0))
    guest.describe(
        *[(0x8000 + 16 * n, 16, NEXT if n < 99 else 0, n + 1) for n in range(100)], table=INDIRECT_TABLE
    )
    guest.offer([0])
    assert guest.popped().readable_length == 1600


def test_empty_descriptors_are_left_out(guest: Guest) -> None:
    guest.describe((0x8000, 0, NEXT, 1), (0x9000, 4, 0, 0))
    guest.offer([0])
    assert guest.popped().readable == [GuestRange(0x9000, 4)]


@pytest.mark.parametrize(
    ("reason", "break_it"),
    [
        ("made available", lambda guest: guest.offer([SIZE])),
        ("made available", lambda guest: guest.offer([0xFFFF])),
        ("continues at 8", lambda guest: guest.describe((0, 4, NEXT, SIZE))),
        ("loops", lambda guest: guest.describe((0, 4, NEXT, 0))),
        ("loops", lambda guest: guest.describe((0, 4, NEXT, 1), (0, 4, NEXT, 0))),
        ("readable", lambda guest: guest.describe((0, 4, NEXT | WRITE, 1), (0, 4, 0, 0))),
        ("wraps", lambda guest: guest.describe((0xFFFF_FFFF_FFFF_FFFF, 2, 0, 0))),
        (
            "4 GiB",
            lambda guest: guest.describe((0, 0xFFFFFFFF, NEXT, 1), (0, 1, NEXT, 2), (0, 1, WRITE, 0)),
        ),
        ("far ahead", lambda guest: guest.offer([0], index=SIZE + 1)),
        ("far ahead", lambda guest: guest.offer([0], index=0xFFFF)),
        ("table of 0", lambda guest: guest.describe((INDIRECT_TABLE, 0, INDIRECT, 0))),
        ("table of 24", lambda guest: guest.describe((INDIRECT_TABLE, 24, INDIRECT, 0))),
        ("table of 524304", lambda guest: guest.describe((INDIRECT_TABLE, 16 * 32769, INDIRECT, 0))),
        ("continues", lambda guest: guest.describe((INDIRECT_TABLE, 16, INDIRECT | NEXT, 1))),
    ],
)
def test_a_broken_ring_is_malformed(guest: Guest, reason: str, break_it: Callable[[Guest], None]) -> None:
    guest.describe((0x8000, 4, 0, 0))
    guest.offer([0])
    break_it(guest)
    with pytest.raises(MalformedRequest, match=reason):
        guest.pop()


@pytest.mark.parametrize(
    ("reason", "descriptors"),
    [
        ("in an indirect table", [(INDIRECT_TABLE, 16, INDIRECT, 0)]),
        ("continues at 2 of 2", [(0, 4, NEXT, 2)]),
        ("loops", [(0, 4, NEXT, 1), (0, 4, NEXT, 0)]),
        ("readable", [(0, 4, NEXT | WRITE, 1), (0, 4, 0, 0)]),
    ],
)
def test_a_broken_indirect_table_is_malformed(
    guest: Guest, reason: str, descriptors: list[tuple[int, int, int, int]]
) -> None:
    guest.describe((INDIRECT_TABLE, 32, INDIRECT, 0))
    guest.describe(*descriptors, table=INDIRECT_TABLE)
    guest.offer([0])
    with pytest.raises(MalformedRequest, match=reason):
        guest.pop()


def test_an_indirect_descriptor_that_was_not_negotiated_is_malformed() -> None:
    guest = Guest(features=0)
    guest.describe((INDIRECT_TABLE, 16, INDIRECT, 0))
    guest.offer([0])
    with pytest.raises(MalformedRequest, match="INDIRECT_DESC"):
        guest.pop()


@pytest.mark.parametrize("size", [0, 65536])
def test_a_queue_of_impossible_size_is_malformed(size: int) -> None:
    with pytest.raises(MalformedRequest, match="entries"):
        Virtqueue(RingLayout(size, TABLE, AVAILABLE, USED), 0)


def test_a_chain_of_exactly_four_gib_is_allowed(guest: Guest) -> None:
    guest.describe((0, 0x80000000, NEXT, 1), (0, 0x80000000, 0, 0))
    guest.offer([0])
    assert guest.popped().readable_length == 1 << 32


def test_used_buffers_are_published_one_by_one(guest: Guest) -> None:
    guest.push(3, 0x1234)
    assert guest.host.memory.data[USED + 2 : USED + 12] == b"\1\0" + b"\3\0\0\0" + b"\x34\x12\0\0"
    guest.push(5, 6)
    assert guest.peek16(USED + 2) == 2
    assert guest.host.memory.data[USED + 12 : USED + 20] == b"\5\0\0\0\6\0\0\0"


def test_a_buffer_put_back_is_popped_again(guest: Guest) -> None:
    guest.describe((0x8000, 4, 0, 0))
    guest.offer([0])
    guest.popped()
    guest.queue.put_back()
    assert guest.popped().head == 0


def test_interrupts_follow_the_driver_s_flag(guest: Guest) -> None:
    assert not guest.wants_interrupt()
    guest.push(0, 0)
    assert guest.wants_interrupt()
    assert not guest.wants_interrupt()
    guest.poke(AVAILABLE, b"\1\0")
    guest.push(0, 0)
    assert not guest.wants_interrupt()


def test_kicks_are_turned_off_while_the_device_is_busy(guest: Guest) -> None:
    guest.host.drive(guest.queue.hush())
    assert guest.peek16(USED) == 1
    assert not guest.host.drive(guest.queue.listen())
    assert guest.peek16(USED) == 0


@pytest.mark.parametrize("shared", [True, False])
def test_listening_notices_a_buffer_that_came_without_a_kick(shared: bool) -> None:
    guest = Guest(shared=shared, features=EVENT_IDX)
    guest.describe((0x8000, 4, 0, 0))
    assert not guest.host.drive(guest.queue.listen())
    guest.offer([0])
    assert guest.host.drive(guest.queue.listen())
    guest.popped()
    assert not guest.host.drive(guest.queue.listen())
    assert guest.peek16(USED + 4 + 8 * SIZE) == 1


def need_event(event: int, new: int, old: int) -> bool:
    """vring_need_event of the specification (2.7.10), in 16-bit arithmetic."""
    return (new - event - 1) % 65536 < (new - old) % 65536


@given(event=st.integers(0, 12), batches=st.lists(st.integers(1, SIZE), max_size=6))
def test_interrupts_follow_the_used_event(event: int, batches: list[int]) -> None:
    guest = Guest(features=EVENT_IDX)
    guest.poke(AVAILABLE + 4 + 2 * SIZE, pack("<H", event))
    old = 0
    for batch in batches:
        for _ in range(batch):
            guest.push(0, 0)
        assert guest.wants_interrupt() is need_event(event, old + batch, old)
        old += batch


def test_indexes_wrap_after_65536_buffers() -> None:
    guest = Guest(features=EVENT_IDX, size=2)
    guest.describe((0x8000, 4, 0, 0), (0x9000, 4, 0, 0))
    guest.offer([0, 1])
    interrupts = 0
    for index in range(2, 65536 + 10, 2):
        pack_into("<H", guest.host.memory.data, AVAILABLE + 2, index % 65536)
        assert [guest.popped().head, guest.popped().head] == [0, 1]
        guest.push(0, 0)
        guest.push(1, 0)
        pack_into("<H", guest.host.memory.data, AVAILABLE + 8, (index - 1) % 65536)
        interrupts += guest.wants_interrupt()
    assert guest.pop() is None
    assert guest.peek16(USED + 2) == 8
    assert interrupts == (65536 + 8) // 2


def test_pins_are_kept_between_runs_and_views_are_not() -> None:
    guest = Guest()
    pins = list(guest.host.memory.pins)
    assert len(pins) == 3
    guest.queue.close()
    guest.describe((0x8000, 4, 0, 0))
    guest.offer([0])
    guest.queue.open(guest.host.memory)
    assert guest.host.memory.pins == pins
    guest.popped()
    guest.queue.release()
    assert guest.host.memory.pins == []


def test_a_part_that_is_unmapped_is_released_and_pinned_again_when_it_is_back() -> None:
    guest = Guest()
    guest.describe((0x8000, 4, 0, 0))
    guest.offer([0])
    guest.host.memory.unmap(AVAILABLE, 4096)
    assert len(guest.host.memory.pins) == 2
    with pytest.raises(GuestMemoryError):
        guest.pop()
    with pytest.raises(GuestMemoryError):
        guest.queue.open(guest.host.memory)
    guest.host.memory.holes.clear()
    guest.queue.open(guest.host.memory)
    assert len(guest.host.memory.pins) == 3
    assert guest.popped().head == 0


def test_another_client_s_memory_is_pinned_anew() -> None:
    guest = Guest()
    other = FakeHost(1 << 17)
    guest.queue.open(other.memory)
    assert guest.host.memory.pins == []
    assert len(other.memory.pins) == 3


class PiecemealMemory(FakeMemory):
    """Shows pinned memory in two pieces, as a host without an aperture does where files meet."""

    def pin_pages(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap) -> FakePinnedPages:
        halves = [
            half
            for address, length in ranges
            for half in (GuestRange(address, length // 2), GuestRange(address + length // 2, length // 2))
        ]
        pins = super().pin_pages(halves[::-1], prot, on_unmap)
        assert len(pins.views()) == 2
        return pins


class LimitedMemory(FakeMemory):
    """Has a limit of locked pages, and it is reached."""

    def pin_pages(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap) -> FakePinnedPages:
        raise GuestMemoryError(errno.ENOMEM, "over the limit of locked pages")


@pytest.mark.parametrize("memory", [PiecemealMemory(1 << 17), LimitedMemory(1 << 17)])
def test_a_ring_that_cannot_be_seen_in_one_piece_is_copied(memory: FakeMemory) -> None:
    guest = Guest()
    guest.host.memory = memory
    guest.queue.open(memory)
    guest.describe((0x8000, 4, 0, 0))
    guest.offer([0])
    assert guest.popped().head == 0
    guest.push(0, 7)
    assert guest.peek16(USED + 2) == 1
    assert memory.pins == []


def test_a_ring_outside_of_memory_is_an_error() -> None:
    host = FakeHost(1 << 14)
    queue = Virtqueue(RingLayout(SIZE, TABLE, AVAILABLE, 1 << 40), 0)
    with pytest.raises(GuestMemoryError):
        queue.open(host.memory)
