"""Memory that the client did not share: DMA_READ and DMA_WRITE, on the main socket and on the twin."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.typing import EventDict

from devices import work
from devices.contract import GuestMemoryError
from protocol import (
    Capabilities,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaWrite,
    DmaWriteReply,
    GetInfo,
    Message,
    MessageType,
    RegionWrite,
    TwinSocket,
    encode,
    encode_error,
    encode_reply,
)
from server.client import open_client
from server.client.client import CAPABILITIES
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import Server
from tests.server.transports.raw import RawClient, greeted_client, raw_client
from tests.server.transports.test_handshake import assert_served, dropped

MAPPED = 16 << 20
DOORBELL = 0x10
READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
TWIN = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, twin_socket=TwinSocket(supported=True))

on_both_sockets = pytest.mark.parametrize("capabilities", [CAPABILITIES, TWIN], ids=["main", "twin"])


class Memory:
    """A client's memory."""

    def __init__(self) -> None:
        self.data = bytearray(MAPPED)
        self.sizes: list[int] = []
        self.refuse = 0

    def read(self, address: int, count: int) -> bytes:
        self._check(count)
        return bytes(self.data[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self._check(len(data))
        self.data[address : address + len(data)] = data

    def _check(self, count: int) -> None:
        self.sizes.append(count)
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))


class Job:
    """Deferred work that a doorbell starts: copies in the client's memory, and what came of it."""

    def __init__(self, device: RegisterDevice, source: int, target: int, count: int) -> None:
        self.done = trio.Event()
        self.error: GuestMemoryError | None = None
        self._device = device
        self._copy = (source, target, count)
        device.on_write[DOORBELL] = lambda _: device.attached.defer(self._run())

    async def _run(self) -> None:
        memory = self._device.attached.memory
        source, target, count = self._copy
        try:
            await memory.write(target, await memory.read(source, count))
        except GuestMemoryError as error:
            self.error = error
        self.done.set()

    async def wait(self) -> None:
        with trio.fail_after(60):
            await self.done.wait()


@on_both_sockets
@pytest.mark.parametrize("count", [1, 4096, 100_000, 3 << 20])
async def test_a_device_reads_and_writes_memory_by_message(
    server: Server, device: RegisterDevice, capabilities: Capabilities, count: int
) -> None:
    memory = Memory()
    memory.data[:count] = os.urandom(count)
    job = Job(device, 0, 8 << 20, count)
    async with open_client(server.path, memory=memory, capabilities=capabilities) as client:
        await client.dma_map(0, MAPPED)
        await client.region_write(BAR0, DOORBELL, b"go")
        await job.wait()
        assert job.error is None
        assert memory.data[8 << 20 : (8 << 20) + count] == memory.data[:count]
        assert max(memory.sizes) <= client.agreement.client_max_data_xfer_size


@on_both_sockets
async def test_registers_are_served_while_a_message_is_under_way(
    server: Server, device: RegisterDevice, capabilities: Capabilities
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        job = Job(device, 0, PAGE, 8)
        request = await _start(client, twin)
        assert not (await client.ask(GetInfo())).header.is_error
        await _reply(twin, request, DmaReadReply(0, b"12345678"))
        request = await twin.message()
        assert DmaWrite.unpack(request.payload) == DmaWrite(PAGE, b"12345678")
        await _reply(twin, request, DmaWriteReply(PAGE, 8))
        await job.wait()
        assert job.error is None


@on_both_sockets
async def test_a_refusal_reaches_the_device_as_an_error(
    server: Server, device: RegisterDevice, capabilities: Capabilities
) -> None:
    memory = Memory()
    memory.refuse = errno.ENODEV
    job = Job(device, 0, PAGE, 8)
    async with open_client(server.path, memory=memory, capabilities=capabilities) as client:
        await client.dma_map(0, MAPPED)
        await client.region_write(BAR0, DOORBELL, b"go")
        await job.wait()
        assert job.error is not None
        assert job.error.errno == errno.ENODEV
        memory.refuse = 0
        again = Job(device, 0, PAGE, 8)
        await client.region_write(BAR0, DOORBELL, b"go")
        await again.wait()
        assert again.error is None


@on_both_sockets
@pytest.mark.parametrize("code", [0, 2**32 - 1])
async def test_an_error_reply_without_an_errno_is_an_error(
    server: Server, device: RegisterDevice, capabilities: Capabilities, code: int
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        job = Job(device, 0, PAGE, 8)
        request = await _start(client, twin)
        await twin.send(encode_error(request.header.message_id, Command.DMA_READ, code))
        await job.wait()
        assert job.error is not None


@on_both_sockets
async def test_a_reply_in_part_is_an_error_for_the_device(
    server: Server, device: RegisterDevice, capabilities: Capabilities
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        job = Job(device, 0, PAGE, 8)
        request = await _start(client, twin)
        await _reply(twin, request, DmaReadReply(0, b"1234"))
        await job.wait()
        assert job.error is not None
        assert job.error.errno == errno.EIO
        assert not (await client.ask(GetInfo())).header.is_error


@on_both_sockets
async def test_a_reply_about_another_address_is_an_error_for_the_device(
    server: Server, device: RegisterDevice, capabilities: Capabilities
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        job = Job(device, 0, PAGE, 8)
        request = await _start(client, twin)
        await _reply(twin, request, DmaReadReply(PAGE, b"12345678"))
        await job.wait()
        assert job.error is not None


@on_both_sockets
@pytest.mark.parametrize("wrong", ["id", "command", "twice", "payload"])
async def test_a_reply_that_matches_nothing_ends_the_connection(
    server: Server, device: RegisterDevice, log: list[EventDict], capabilities: Capabilities, wrong: str
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        Job(device, 0, PAGE, 8)
        request = await _start(client, twin)
        message_id = request.header.message_id
        good = encode_reply(message_id, Command.DMA_READ, DmaReadReply(0, b"12345678"))
        match wrong:
            case "id":
                await twin.send(encode_reply(message_id ^ 1, Command.DMA_READ, DmaReadReply(0, b"12345678")))
            case "command":
                await twin.send(encode_reply(message_id, Command.DMA_WRITE, DmaWriteReply(0, 8)))
            case "payload":
                await twin.send(encode(message_id, Command.DMA_READ, MessageType.REPLY, bytes(7)))
            case "twice":
                await twin.send(good + good)
        assert await client.ends()  # the first of two good replies may have had its effect
    await assert_served(server)
    assert len(dropped(log)) == 1


async def test_a_command_on_the_twin_socket_ends_the_connection(server: Server, log: list[EventDict]) -> None:
    async with two_channels(server, TWIN) as (client, twin):
        await twin.command(GetInfo())
        assert await client.ended()
    await assert_served(server)
    assert dropped(log) == ["a command on the twin socket"]


async def test_garbage_on_the_twin_socket_ends_the_connection(server: Server, log: list[EventDict]) -> None:
    async with two_channels(server, TWIN) as (client, twin):
        await twin.send(b"\xff" * 100)
        assert await client.ended()
    await assert_served(server)


async def test_fds_on_the_twin_socket_end_the_connection(server: Server, device: RegisterDevice) -> None:
    reader, writer = os.pipe()
    async with two_channels(server, TWIN) as (client, twin):
        Job(device, 0, PAGE, 8)
        request = await _start(client, twin)
        reply = encode_reply(request.header.message_id, Command.DMA_READ, DmaReadReply(0, b"12345678"))
        await twin.send(reply, [writer])
        assert await client.ended()
    os.close(writer)
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(reader)
    os.close(reader)
    await assert_served(server)


async def test_a_twin_socket_that_closes_fails_what_waits_for_it(
    server: Server, device: RegisterDevice
) -> None:
    async with two_channels(server, TWIN) as (client, twin):
        job = Job(device, 0, PAGE, 8)
        await _start(client, twin)
        twin.sock.close()
        await job.wait()
        assert job.error is not None
        assert job.error.errno == errno.ENODEV
        later = Job(device, 0, PAGE, 8)
        assert not (await client.ask(RegionWrite(DOORBELL, BAR0, b"go"))).header.is_error
        await later.wait()
        assert later.error is not None
        assert later.error.errno == errno.ENODEV
        assert not (await client.ask(GetInfo())).header.is_error


@on_both_sockets
async def test_a_client_that_leaves_with_a_message_under_way_ends_the_work(
    server: Server, device: RegisterDevice, capabilities: Capabilities
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        job = Job(device, 0, PAGE, 8)
        await _start(client, twin)
    await job.wait()
    assert job.error is not None
    assert job.error.errno == errno.ENODEV
    await assert_served(server)


async def test_a_client_that_does_not_read_its_twin_socket_keeps_its_registers(
    server: Server, device: RegisterDevice
) -> None:
    memory = Memory()
    async with two_channels(server, TWIN) as (client, twin):

        async def flood() -> None:
            for address in range(0, 8 << 20, 1 << 20):
                await device.attached.memory.write(address, b"x" * (1 << 20))

        twin.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        device.on_write[DOORBELL] = lambda _: device.attached.defer(flood())
        await client.ask(DmaMap(0, MAPPED, READ_WRITE))
        assert not (await client.ask(RegionWrite(DOORBELL, BAR0, b"go"))).header.is_error
        for _ in range(20):
            assert not (await client.ask(GetInfo())).header.is_error
        received = 0
        while received < 8 << 20:
            with trio.fail_after(60):
                request = await twin.message()
            value = DmaWrite.unpack(request.payload)
            memory.write(value.address, value.data)
            received += len(value.data)
            await _reply(twin, request, DmaWriteReply(value.address, len(value.data)))
    assert memory.data[: 8 << 20] == b"x" * (8 << 20)


async def test_work_that_pauses_goes_on_after_a_reply_on_the_twin_socket(
    server: Server, device: RegisterDevice
) -> None:
    done = trio.Event()

    async def busy() -> None:
        memory = device.attached.memory
        await memory.read(0, 8)
        until = device.attached.clock() + 3_000_000  # longer than work may run at a time
        while device.attached.clock() < until:
            await work.pause()
        done.set()

    device.on_write[DOORBELL] = lambda _: device.attached.defer(busy())
    async with open_client(server.path, memory=Memory(), capabilities=TWIN) as client:
        await client.dma_map(0, MAPPED)
        await client.region_write(BAR0, DOORBELL, b"go")
        with trio.fail_after(60):
            await done.wait()


async def test_memory_that_is_shared_in_part_is_read_by_message_in_part(
    server: Server, device: RegisterDevice
) -> None:
    memory = Memory()
    memory.data[PAGE : PAGE + 4] = b"mine"
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    os.pwrite(fd, b"ours", PAGE - 4)
    job = Job(device, PAGE - 4, 2 * PAGE, 8)
    async with open_client(server.path, memory=memory) as client:
        await client.dma_map(0, PAGE, fd=fd)
        await client.dma_map(PAGE, 4 * PAGE)
        os.close(fd)
        await client.region_write(BAR0, DOORBELL, b"go")
        await job.wait()
    assert memory.data[2 * PAGE : 2 * PAGE + 8] == b"oursmine"
    assert memory.sizes == [4, 8]


async def test_message_ids_of_both_sides_may_be_the_same(server: Server, device: RegisterDevice) -> None:
    async with two_channels(server, CAPABILITIES) as (client, _):
        job = Job(device, 0, PAGE, 8)
        request = await _start(client, client)
        message_id = request.header.message_id
        assert (await client.ask(GetInfo(), message_id=message_id)).header.command == Command.DEVICE_GET_INFO
        await _reply(client, request, DmaReadReply(0, b"12345678"))
        await _reply(client, await client.message(), DmaWriteReply(PAGE, 8))
        await job.wait()
        assert job.error is None


async def test_a_write_reply_without_payload_is_a_reply(server: Server, device: RegisterDevice) -> None:
    """QEMU sends no payload."""
    async with two_channels(server, CAPABILITIES) as (client, _):
        job = Job(device, 0, PAGE, 8)
        await _reply(client, await _start(client, client), DmaReadReply(0, b"12345678"))
        await _reply(client, await client.message(), DmaWriteReply())
        await job.wait()
        assert job.error is None


@asynccontextmanager
async def two_channels(
    server: Server, capabilities: Capabilities
) -> AsyncIterator[tuple[RawClient, RawClient]]:
    """A client with its memory mapped, and the channel that the server's requests come on."""
    async with raw_client(server.path) as client:
        reply = await client.say_version(capabilities)
        if not reply.fds:
            yield client, client
            return
        with trio.socket.from_stdlib_socket(socket.socket(fileno=reply.fds[0])) as sock:
            yield client, RawClient(sock)


async def _start(client: RawClient, twin: RawClient) -> Message:
    """Map memory, ring the doorbell, and take the DMA_READ that follows."""
    assert not (await client.ask(DmaMap(0, MAPPED, READ_WRITE))).header.is_error
    assert not (await client.ask(RegionWrite(DOORBELL, BAR0, b"go"))).header.is_error
    with trio.fail_after(60):
        request = await twin.message()
    assert request.header.is_command
    assert DmaRead.unpack(request.payload) == DmaRead(0, 8)
    return request


async def _reply(twin: RawClient, request: Message, value: DmaReadReply | DmaWriteReply) -> None:
    await twin.send(encode_reply(request.header.message_id, request.header.command, value))


async def test_no_memory_is_asked_for_that_is_not_mapped(server: Server, device: RegisterDevice) -> None:
    job = Job(device, 0, PAGE, 8)
    async with greeted_client(server.path) as client:
        assert not (await client.ask(RegionWrite(DOORBELL, BAR0, b"go"))).header.is_error
        await job.wait()
        assert job.error is not None
        assert job.error.errno == errno.EINVAL
        assert (await client.ask(GetInfo())).header.command == Command.DEVICE_GET_INFO
