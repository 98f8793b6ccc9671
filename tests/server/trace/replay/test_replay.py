"""Replays: the same device is found to do the same, and another one is found out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protocol import Command, RegionWrite
from server.client import RemoteError, VfioUserClient
from server.trace.replay.comparison import Comparison, Mask
from server.trace.replay.report import Report
from tests.server.register_device import BAR0, BAR1, MSIX, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS
from tests.server.trace.replay.sessions import (
    BASE,
    DOORBELL,
    RESULT,
    STUCK,
    U64,
    Squares,
    record,
    replayed,
    square_numbers,
)

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
async def trace(tmp_path: Path) -> Path:
    return await record(tmp_path, Squares(), square_numbers)


def first_of(report: Report) -> str:
    assert not report.same
    assert report.first is not None
    return report.first.what


@on_both_transports
@pytest.mark.parametrize("memory", ["auto", "shared", "message"])
@pytest.mark.parametrize("recorded_by", TRANSPORTS)
async def test_the_same_device_does_the_same(
    tmp_path: Path, recorded_by: str, transport: str, memory: str
) -> None:
    trace = await record(tmp_path, Squares(), square_numbers, transport=recorded_by)
    report = await replayed(trace, Squares(), transport=transport, memory=memory)
    assert report.same, report.first
    # VERSION, GET_INFO, GET_IRQ_INFO, SET_IRQS, DMA_MAP, 5 writes, 5 reads, DMA_UNMAP
    assert (report.sent, report.replies) == (16, 16)
    assert (report.reads, report.writes, report.interrupts) == (5, 5, 5)


@on_both_transports
async def test_one_bit_of_one_register_is_found_and_the_message_named(trace: Path, transport: str) -> None:
    class OneBitOff(Squares):
        def region_read(self, index: int, offset: int, count: int) -> bytes:
            data = bytearray(super().region_read(index, offset, count))
            if U64.unpack(data) == (17 * 17,):
                data[1] ^= 0x40
            return bytes(data)

    report = await replayed(trace, OneBitOff(), transport=transport)
    assert first_of(report) == f"data is {17 * 17 ^ 0x4000:#018x}, and was {17 * 17:#018x}"
    assert report.divergences == 1
    assert report.stopped is None
    assert report.first is not None
    assert report.first.at is not None
    # 5 requests and replies before the loop; the third number is 17.
    assert report.first.at.number == 2 * 5 + 4 * 3
    assert report.first.at.header.command == Command.REGION_READ


async def test_masked_bits_may_differ(trace: Path) -> None:
    class OneBitOff(Squares):
        def region_read(self, index: int, offset: int, count: int) -> bytes:
            data = super().region_read(index, offset, count)
            return bytes([data[0] ^ 0x10, *data[1:]])

    assert not (await replayed(trace, OneBitOff())).same
    masked = Comparison([Mask.parse(f"BAR0:{RESULT}:1:0x10")])
    assert (await replayed(trace, OneBitOff(), comparison=masked)).same
    other = Comparison([Mask.parse(f"BAR0:{RESULT}:1:0x0f"), Mask.parse("BAR1:8")])
    assert not (await replayed(trace, OneBitOff(), comparison=other)).same


async def test_an_interrupt_that_is_not_raised_is_missed(trace: Path, autojump_clock: MockClock) -> None:
    class Silent(Squares):
        async def work(self, address: int) -> None:
            await self.memory.write(
                address + U64.size, U64.pack(U64.unpack(await self.memory.read(address, 8))[0] + 1)
            )

    report = await replayed(trace, Silent(), options=STUCK)
    assert first_of(report) == "interrupt MSIX 0 was not raised within 0.3 s"
    assert report.stopped is not None


async def test_an_interrupt_too_many_is_seen(trace: Path) -> None:
    class Loud(Squares):
        async def work(self, address: int) -> None:
            await super().work(address)
            self.attached.trigger(MSIX, 0)

    report = await replayed(trace, Loud())
    assert first_of(report) == "interrupt MSIX 0 was raised 5 times more than in the recording"


@pytest.mark.parametrize("memory", ["shared", "message"])
async def test_other_bytes_in_guest_memory_are_found(
    trace: Path, memory: str, autojump_clock: MockClock
) -> None:
    class Wrong(Squares):
        async def work(self, address: int) -> None:
            await super().work(address)
            await self.memory.write(address + U64.size, U64.pack(99))

    report = await replayed(trace, Wrong(), memory=memory, options=STUCK)
    assert f"guest address {BASE + U64.size:#x}" in first_of(report)


@pytest.mark.parametrize("memory", ["shared", "message"])
async def test_a_device_that_does_not_write_is_waited_for_in_vain(
    trace: Path, memory: str, autojump_clock: MockClock
) -> None:
    class Lazy(Squares):
        async def work(self, address: int) -> None:
            await self.memory.read(address, U64.size)
            self.attached.trigger(MSIX, 0)

    report = await replayed(trace, Lazy(), memory=memory, options=STUCK)
    assert report.stopped is not None
    assert not report.same


async def test_writing_what_is_there_already_is_no_difference(trace: Path) -> None:
    class Twice(Squares):
        async def work(self, address: int) -> None:
            (number,) = U64.unpack(await self.memory.read(address, U64.size))
            await self.memory.write(address, U64.pack(number))
            await super().work(address)

    assert (await replayed(trace, Twice())).same


async def test_an_error_where_there_was_none_is_a_difference(tmp_path: Path) -> None:
    async def act(client: VfioUserClient, _fd: int) -> None:
        await client.region_read(BAR0, 0, 4)
        with pytest.raises(RemoteError):
            await client.region_write(BAR1, 0, b"1")

    trace = await record(tmp_path, RegisterDevice(), act)
    broken = RegisterDevice()
    broken.broken.add("region_read")
    report = await replayed(trace, broken)
    assert first_of(report) == "the reply is Input/output error (5), and was success"
    assert report.divergences == 1


async def test_what_the_guest_changes_while_the_device_looks_is_replayed_by_message(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Polls(RegisterDevice):
        """Reads the same place until it finds a 0, and writes down what it found."""

        def __init__(self, between: list[bytes]) -> None:
            super().__init__()
            self.fd = -1
            self._between = between
            self.on_write[DOORBELL] = lambda _data: self.attached.defer(self.work())

        async def work(self) -> None:
            found = bytearray()
            while (byte := await self.attached.memory.read(BASE, 1)) != b"\0":
                found += byte
                if self.fd >= 0:
                    os.pwrite(self.fd, self._between.pop(0), 0)
            await self.attached.memory.write(BASE + 8, bytes(found))

    guest = Polls([b"b", b"b", b"c", b"\0"])

    async def act(client: VfioUserClient, fd: int) -> None:
        guest.fd = fd
        os.pwrite(fd, b"a", 0)
        await client.dma_map(BASE, PAGE, fd=fd)
        await client.region_write(BAR0, DOORBELL, U64.pack(0))
        await client.region_read(BAR0, RESULT, 1)
        assert os.pread(fd, 4, 8) == b"abbc"

    trace = await record(tmp_path, guest, act)
    report = await replayed(trace, Polls([]), memory="message")
    assert report.same, report.first
    assert (report.reads, report.writes) == (5, 1)
    assert not (await replayed(trace, Polls([]), memory="shared", options=STUCK)).same


@on_both_transports
async def test_what_a_device_makes_of_what_it_read_is_there_when_it_is_asked_for(
    tmp_path: Path, transport: str
) -> None:
    class Silent(Squares):
        """Tells nobody when it is done."""

        async def work(self, address: int) -> None:
            (number,) = U64.unpack(await self.memory.read(address, U64.size))
            self.data[BAR0][RESULT : RESULT + U64.size] = U64.pack(number * number)

    async def act(client: VfioUserClient, fd: int) -> None:
        os.pwrite(fd, U64.pack(9), 0)
        await client.dma_map(BASE, PAGE, fd=fd)
        await client.region_write(BAR0, DOORBELL, U64.pack(BASE))
        await trio.testing.wait_all_tasks_blocked()
        assert await client.region_read(BAR0, RESULT, U64.size) == U64.pack(81)

    trace = await record(tmp_path, Silent(), act)
    report = await replayed(trace, Silent(), transport=transport, memory="message")
    assert report.same, report.first
    assert report.reads == 1


async def test_posted_writes_and_messages_sent_at_once_are_replayed(tmp_path: Path) -> None:
    async def act(client: VfioUserClient, _fd: int) -> None:
        for number in range(20):
            await client.post(RegionWrite(16, BAR0, U64.pack(number)))
        assert await client.region_read(BAR0, 16, 8) == U64.pack(19)

    trace = await record(tmp_path, RegisterDevice(), act)
    report = await replayed(trace, RegisterDevice())
    assert report.same, report.first
    assert (report.sent, report.replies) == (22, 2)


async def test_every_session_of_a_trace_is_replayed_by_its_number(tmp_path: Path) -> None:
    async def write(client: VfioUserClient, _fd: int) -> None:
        await client.region_write(BAR0, 64, b"left")

    async def read(client: VfioUserClient, _fd: int) -> None:
        assert await client.region_read(BAR0, 64, 4) == b"left"

    trace = await record(tmp_path, RegisterDevice(), write, read)
    assert (await replayed(trace, RegisterDevice(), number=1)).same
    report = await replayed(trace, RegisterDevice(), number=2)
    assert not report.same  # what the session before left is not there
    remembers = RegisterDevice()
    remembers.data[BAR0][64:68] = b"left"
    assert (await replayed(trace, remembers, number=2)).same
