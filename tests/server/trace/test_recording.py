"""Recorded sessions, on both transports: the trace is what the client sent and received, and what that led to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from devices.contract import GuestRange, Prot
from protocol import (
    HEADER,
    Capabilities,
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    GetInfo,
    GetRegionInfo,
    IrqAction,
    IrqData,
    RegionRead,
    RegionWrite,
    SetIrqs,
    Version,
    encode_request,
)
from server.client import open_client
from server.fds import ReceivedFds
from server.trace.fd_facts import fd_facts
from server.trace.recorder import SHORT
from tests.server.register_device import BAR0, BAR3, BAR4, CONFIG, MSIX, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS
from tests.server.trace.recorded_server import (
    CAPABILITIES,
    DOORBELL,
    STUCK_SECONDS,
    TWIN,
    Bed,
    Log,
    guest_memory,
    kinds,
    watched_client,
)
from tests.server.transports.random_requests import RandomRequests, Request
from tests.server.transports.test_same_requests_on_both import Bench, fds_of_a_client

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
LAST = Request(GetInfo.command, GetInfo().pack())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(params=TRANSPORTS)
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    device = RegisterDevice()
    yield Bed(device, request.param, tmp_path / "trace")
    device.close()


@pytest.mark.parametrize("seed", range(6))
async def test_the_trace_is_what_the_client_sent_and_received(bed: Bed, seed: int) -> None:
    log = Log()
    bed.device.share_bar3()
    async with bed.recorded() as server, watched_client(server.path, log) as client:
        await client.say_version()
        ReceivedFds((await client.ask(GetRegionInfo(BAR3, 100))).fds).close()
        with fds_of_a_client() as fds:
            bench = Bench(client, bed.device, fds)
            for number, request in enumerate(RandomRequests(seed).sequence(), 100):
                await bench.exchange(number, request)
            for number in range(3):
                await bench.exchange(number, LAST)
                await trio.testing.wait_all_tasks_blocked()
            for pins in bench.pins:
                pins.release()
    bed.check(log)
    assert len(log.sent_fds) > 10
    assert [one.kind for one in log.received_fds[:1]] == ["memfd"]


async def test_requests_and_replies_are_in_the_order_in_which_they_were_on_the_wire(bed: Bed) -> None:
    async with bed.recorded() as server, watched_client(server.path, Log()) as client:
        await client.say_version()
        await client.ask(GetInfo())
        await client.ask(RegionRead(0, CONFIG, 4))
        await client.command(RegionWrite(8, BAR0, b"posted"), no_reply=True)
        await client.ask(DeviceReset())
        assert await client.refusal(RegionRead(0, 77, 4)) != 0
    assert kinds(bed.seen) == [
        "session",
        *("VERSION", "VERSION reply"),
        *("DEVICE_GET_INFO", "DEVICE_GET_INFO reply"),
        *("REGION_READ", "REGION_READ reply"),
        "REGION_WRITE",
        *("DEVICE_RESET", "DEVICE_RESET reply"),
        *("REGION_READ", "REGION_READ reply"),
    ]


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
async def test_messages_in_pieces_are_recorded_whole(bed: Bed, size: int) -> None:
    log = Log()
    stream = encode_request(0, Version(0, 1, CAPABILITIES))
    for number in range(10):
        stream += encode_request(number, RegionWrite(0, BAR0, bytes(number * 10)))
        stream += encode_request(number, RegionRead(0, CONFIG, 4), no_reply=number % 2 == 1)
    async with bed.recorded() as server, watched_client(server.path, log) as client:
        for at in range(0, len(stream), size):
            await client.send(stream[at : at + size])
            await trio.testing.wait_all_tasks_blocked()
        while len(log.received) < 16:
            await client.message()
    bed.check(log)
    requests = [one[2] for one in bed.seen if one[0] == "message" and one[1] == 1]
    assert [HEADER.unpack_from(one)[2] for one in requests] == [len(one) for one in requests]
    assert len(requests) == 21


async def test_a_message_longer_than_a_read_is_recorded_whole(bed: Bed) -> None:
    log = Log()
    async with bed.recorded() as server, watched_client(server.path, log) as client:
        await client.say_version()
        await client.ask(RegionWrite(0, BAR4, os.urandom(1 << 20)))
        await client.ask(RegionRead(0, BAR4, 1 << 20))
    bed.check(log)
    assert max(map(len, log.received)) > 1 << 20


async def test_several_messages_in_one_write_are_recorded_one_by_one(bed: Bed) -> None:
    log = Log()
    async with bed.recorded() as server, watched_client(server.path, log) as client:
        await client.say_version()
        await client.send(
            b"".join(encode_request(number, RegionRead(number, CONFIG, 4)) for number in range(50))
        )
        for _ in range(50):
            await client.message()
    bed.check(log)
    assert kinds(bed.seen).count("REGION_READ") == kinds(bed.seen).count("REGION_READ reply") == 50


async def test_fds_are_told_of_where_their_message_is(bed: Bed) -> None:
    with guest_memory() as memory, ReceivedFds([os.eventfd(0), os.eventfd(0)]) as eventfds:
        request = encode_request(5, DmaMap(0, PAGE, READ_WRITE))
        expected = [fd_facts(memory), fd_facts(memory), *map(fd_facts, eventfds.numbers)]
        async with bed.recorded() as server, watched_client(server.path, Log()) as client:
            await client.say_version()
            await client.ask(DmaMap(PAGE, PAGE, READ_WRITE), [memory])
            await client.send(request[:20], [memory])
            await trio.testing.wait_all_tasks_blocked()
            await client.send(request[20:])
            await client.message()
            await client.ask(SetIrqs(MSIX, 0, 2, IrqData.EVENTFD, IrqAction.TRIGGER), eventfds.numbers)
            await client.ask(RegionRead(0, CONFIG, 4))
    facts = {kind: one[3] for kind, one in zip(kinds(bed.seen), bed.seen, strict=True) if one[0] == "message"}
    found = [facts for one in bed.seen if one[0] == "message" for facts in one[3].fds]
    assert [(one.kind, one.device, one.inode, one.size) for one in found] == [
        (one.kind, one.device, one.inode, one.size) for one in expected
    ]
    assert [len(facts[name].fds) for name in ("DMA_MAP", "DEVICE_SET_IRQS", "REGION_READ")] == [1, 2, 0]


class Work:
    """What a doorbell starts: reads of shared memory, writes, a look at pinned pages, and interrupts."""

    def __init__(self, device: RegisterDevice) -> None:
        self.done = trio.Event()
        self._device = device
        device.on_write[DOORBELL] = self._ring

    def _ring(self, _: bytes) -> None:
        self._device.attached.trigger(MSIX, 0)
        self._device.attached.defer(self._run())

    async def _run(self) -> None:
        host = self._device.attached
        short = await host.memory.read(PAGE - 2, 4)
        await host.memory.write(2 * PAGE, short)
        await host.memory.write(3 * PAGE - SHORT, await host.memory.read(0, 2 * SHORT))
        with host.memory.pin_pages([GuestRange(0, PAGE)], Prot.READ, lambda _: None) as pins:
            pins.look(10, 20)
        host.trigger(MSIX, 1)
        self.done.set()


@pytest.mark.parametrize("posted", [False, True])
async def test_what_the_device_did_is_behind_the_message_that_led_to_it(bed: Bed, posted: bool) -> None:
    work = Work(bed.device)
    with guest_memory() as memory, ReceivedFds([os.eventfd(0), os.eventfd(0)]) as eventfds:
        before = os.pread(memory, 4 * PAGE, 0)
        async with bed.recorded() as server, watched_client(server.path, Log()) as client:
            await client.say_version()
            await client.ask(DmaMap(0, PAGE, READ_WRITE), [memory])
            await client.ask(DmaMap(PAGE, 3 * PAGE, READ_WRITE, PAGE), [memory])
            await client.ask(SetIrqs(MSIX, 0, 2, IrqData.EVENTFD, IrqAction.TRIGGER), eventfds.numbers)
            await client.command(RegionWrite(DOORBELL, BAR0, b"go"), no_reply=posted)
            with trio.fail_after(STUCK_SECONDS):
                await work.done.wait()
            if not posted:
                await client.message()
            await client.ask(GetInfo())
    where = kinds(bed.seen).index("REGION_WRITE")
    events = [one for one in bed.seen[where:] if one[0] != "message"]
    behind = kinds(bed.seen[where:])
    assert behind[:1] + behind[-2:] == ["REGION_WRITE", "DEVICE_GET_INFO", "DEVICE_GET_INFO reply"]
    assert behind[1:3] == (["interrupt", "read"] if posted else ["interrupt", "REGION_WRITE reply"])
    assert events == [
        ("interrupt", MSIX, 0),
        ("read", PAGE - 2, before[PAGE - 2 : PAGE + 2]),
        ("write", 2 * PAGE, before[PAGE - 2 : PAGE + 2]),
        ("read", 0, before[: 2 * SHORT]),
        ("write", 3 * PAGE - SHORT, before[: 2 * SHORT]),
        ("look", 10, before[10:30]),
        ("interrupt", MSIX, 1),
    ]


@pytest.mark.parametrize("capabilities", [CAPABILITIES, TWIN], ids=["main", "twin"])
async def test_what_the_device_does_by_message_is_there_as_messages(
    bed: Bed, capabilities: Capabilities
) -> None:
    done = trio.Event()

    async def run() -> None:
        await bed.device.attached.memory.write(PAGE, await bed.device.attached.memory.read(0, 100))
        done.set()

    class Memory:
        data = bytearray(os.urandom(2 * PAGE))

        def read(self, address: int, count: int) -> bytes:
            return bytes(self.data[address : address + count])

        def write(self, address: int, data: bytes) -> None:
            self.data[address : address + len(data)] = data

    bed.device.on_write[DOORBELL] = lambda _: bed.device.attached.defer(run())
    async with (
        bed.recorded() as server,
        open_client(server.path, memory=Memory(), capabilities=capabilities) as client,
    ):
        await client.dma_map(0, 2 * PAGE)
        await client.region_write(BAR0, DOORBELL, b"go")
        with trio.fail_after(STUCK_SECONDS):
            await done.wait()
        await client.get_info()
    twin = capabilities is TWIN
    assert kinds(bed.seen)[7:11] == ["DMA_READ", "DMA_READ reply", "DMA_WRITE", "DMA_WRITE reply"]
    assert [one[1] for one in bed.seen[7:11]] == [2, 1, 2, 1]
    assert [one[3].twin for one in bed.seen[1:]] == [False] * 6 + [twin] * 4 + [False] * 2
    assert [[fd.kind for fd in one[3].fds] for one in bed.seen[1:3]] == [[], ["socket"] if twin else []]
    assert Memory.data[PAGE : PAGE + 100] in bed.seen[9][2]
