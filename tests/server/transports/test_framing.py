"""Messages that are too short, too long, cut off, unknown, or come in pieces; replies by message id."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
import trio
from structlog.typing import EventDict
from trio.testing import MockClock

from protocol import (
    FLAG_ERROR,
    FLAG_NO_REPLY,
    HEADER,
    HEADER_SIZE,
    SERVER_COMMANDS,
    Command,
    DeviceInfo,
    DeviceReset,
    DmaUnmap,
    GetInfo,
    GetRegionInfo,
    Header,
    MessageType,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    Version,
    encode,
    encode_request,
)
from protocol.codec import PackableRequest
from server.client import open_client
from server.native.connection import STALLED_SECONDS
from server.native.handlers import MAX_DATA_XFER_SIZE
from server.native.transport import MAX_FDS
from tests.server.register_device import BAR0, BAR1, BAR4, CONFIG, PAGE, RegisterDevice
from tests.server.running import Server
from tests.server.transports.raw import error_of, greeted_client, raw_client
from tests.server.transports.test_handshake import assert_served, dropped


@pytest.mark.parametrize(
    ("size", "code"),
    [(0, errno.EINVAL), (15, errno.EINVAL), (2**32 - 1, errno.E2BIG), (MAX_DATA_XFER_SIZE * 2, errno.E2BIG)],
)
@pytest.mark.parametrize("greeted", [True, False])
async def test_a_size_that_cannot_be_is_refused_and_ends_the_connection(
    server: Server, log: list[EventDict], size: int, code: int, greeted: bool
) -> None:
    async with (greeted_client if greeted else raw_client)(server.path) as client:
        await client.send(HEADER.pack(9, Command.REGION_READ, size, 0, 0) + bytes(64))
        reply = await client.message()
        assert error_of(reply) == code
        assert (reply.header.message_id, reply.header.command) == (9, Command.REGION_READ)
        assert await client.ended()
    await assert_served(server)
    assert len(dropped(log)) == 1


async def test_messages_before_a_broken_one_are_served(server: Server) -> None:
    broken = HEADER.pack(2, Command.REGION_READ, 3, 0, 0)
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, GetInfo()) + broken)
        assert (await client.message()).header.message_id == 1
        assert error_of(await client.message()) == errno.EINVAL
        assert await client.ended()


@pytest.mark.parametrize("cut", [1, 15, 16, 20, 31])
async def test_a_message_that_is_cut_off_is_noted_and_nothing_else(
    server: Server, log: list[EventDict], cut: int
) -> None:
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, RegionRead(0, CONFIG, 4))[:cut])
        await trio.testing.wait_all_tasks_blocked()
    await assert_served(server)
    left = [event for event in log if event["event"] == "client_left"]
    assert left[0]["cut_off"] is True


async def test_garbage_ends_the_connection_and_not_the_server(server: Server) -> None:
    async with greeted_client(server.path) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await client.ended()
    await assert_served(server)


@pytest.mark.parametrize("command", [0, 14, 19, 255, 0xFFFF, *sorted(SERVER_COMMANDS)])
async def test_an_unknown_command_is_refused_and_the_connection_goes_on(server: Server, command: int) -> None:
    async with greeted_client(server.path) as client:
        for payload in (b"", bytes(100)):
            reply = await client.ask_raw(command, payload)
            assert error_of(reply) == errno.ENOSYS
            assert reply.header.command == command
        assert not (await client.ask(GetInfo())).header.is_error


@pytest.mark.parametrize("kind", [2, 3, 8, 15])
async def test_a_reserved_message_type_is_refused(server: Server, kind: int) -> None:
    async with greeted_client(server.path) as client:
        await client.send(encode(4, Command.DEVICE_GET_INFO, kind, GetInfo().pack()))
        assert error_of(await client.message()) == errno.EINVAL
        assert not (await client.ask(GetInfo())).header.is_error


@pytest.mark.parametrize("flags", [0, FLAG_ERROR])
async def test_a_reply_that_nobody_asked_for_ends_the_connection(
    server: Server, log: list[EventDict], flags: int
) -> None:
    async with greeted_client(server.path) as client:
        await client.send(encode(4, Command.DMA_READ, MessageType.REPLY | flags, bytes(16)))
        assert await client.ended()
    await assert_served(server)
    assert dropped(log) == ["a reply to message 4, which is not under way"]


@pytest.mark.parametrize(
    "command",
    [
        Command.DMA_MAP,
        Command.DMA_UNMAP,
        Command.DEVICE_GET_INFO,
        Command.DEVICE_GET_REGION_INFO,
        Command.DEVICE_GET_REGION_IO_FDS,
        Command.DEVICE_GET_IRQ_INFO,
        Command.DEVICE_SET_IRQS,
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.REGION_WRITE_MULTI,
        Command.DEVICE_FEATURE,
        Command.MIG_DATA_READ,
        Command.MIG_DATA_WRITE,
    ],
)
async def test_a_payload_that_is_too_short_is_refused(server: Server, command: Command) -> None:
    async with greeted_client(server.path) as client:
        for size in (0, 1, 3, 7):
            assert error_of(await client.ask_raw(command, bytes(size))) == errno.EINVAL
        assert not (await client.ask(GetInfo())).header.is_error


async def test_an_error_reply_is_a_header_alone(server: Server) -> None:
    async with greeted_client(server.path) as client:
        for refused in (GetRegionInfo(99), RegionWrite(0, BAR1, b"1"), DmaUnmap(0, PAGE)):
            message = await client.ask(refused)
            assert error_of(message) in (errno.EINVAL, errno.EPERM, errno.ENOENT)
            assert len(message.payload) == 0


async def test_a_payload_that_is_too_long_is_refused(server: Server) -> None:
    async with greeted_client(server.path) as client:
        assert error_of(await client.ask_raw(Command.DEVICE_RESET, b"x")) == errno.EINVAL
        long_read = RegionRead(0, CONFIG, 4).pack() + b"x"
        assert error_of(await client.ask_raw(Command.REGION_READ, long_read)) == errno.EINVAL
        two_for_one = RegionWrite(0, CONFIG, b"12").pack() + b"x"
        assert error_of(await client.ask_raw(Command.REGION_WRITE, two_for_one)) == errno.EINVAL


async def test_a_write_that_promises_more_data_than_it_brings_is_refused(
    server: Server, device: RegisterDevice
) -> None:
    async with greeted_client(server.path) as client:
        payload = struct.pack("=QII", 0, BAR0, 8) + b"1234"
        assert error_of(await client.ask_raw(Command.REGION_WRITE, payload)) == errno.EINVAL
    assert device.data[BAR0][:8] == bytes(8)


async def test_every_message_may_come_byte_by_byte(server: Server, device: RegisterDevice) -> None:
    write, read = RegionWrite(8, BAR0, b"abcd"), RegionRead(8, BAR0, 4)
    async with greeted_client(server.path) as client:
        for byte in encode_request(1, write) + encode_request(2, read):
            await client.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await client.message()).header == Header(1, Command.REGION_WRITE, 32, MessageType.REPLY)
        assert RegionReadReply.unpack((await client.message()).payload).data == b"abcd"


async def test_pipelined_requests_are_answered_in_order(server: Server, device: RegisterDevice) -> None:
    device.data[BAR0][:] = os.urandom(4096)
    requests = [RegionRead(offset, BAR0, 4) for offset in range(0, 4096, 4)]
    stream = b"".join(encode_request(number, request) for number, request in enumerate(requests))
    async with greeted_client(server.path) as client:
        await client.send(stream)
        for number, request in enumerate(requests):
            reply = await client.message()
            assert reply.header.message_id == number
            value = RegionReadReply.unpack(reply.payload)
            assert value.data == device.data[BAR0][request.offset : request.offset + 4]


async def test_a_large_read_is_served_wherever_it_is_in_a_row_of_small_ones(server: Server) -> None:
    small, other = encode_request(1, RegionRead(0, BAR4, 4)), encode_request(1, RegionWrite(0, BAR4, b"1234"))
    large = encode_request(2, RegionRead(0, BAR4, MAX_DATA_XFER_SIZE))
    async with greeted_client(server.path) as client:
        for before in range(120, 132):
            await client.send(other + small * before + large)
            for _ in range(before + 1):
                assert not (await client.message()).header.is_error
            with trio.fail_after(60):
                assert len((await client.message()).payload) == 16 + MAX_DATA_XFER_SIZE


async def test_reads_and_other_commands_keep_their_order_in_one_read(server: Server) -> None:
    requests: list[PackableRequest] = [
        RegionRead(0, CONFIG, 4),
        GetInfo(),
        RegionRead(0, 99, 4),
        DeviceReset(),
        RegionRead(0, CONFIG, 2),
    ]
    async with greeted_client(server.path) as client:
        await client.send(b"".join(encode_request(10 + n, value) for n, value in enumerate(requests)))
        replies = [await client.message() for _ in requests]
    assert [reply.header.message_id for reply in replies] == [10, 11, 12, 13, 14]
    assert [reply.header.command for reply in replies] == [value.command for value in requests]
    assert [reply.header.is_error for reply in replies] == [False, False, True, False, False]


async def test_no_reply_means_no_reply_even_to_errors(server: Server, device: RegisterDevice) -> None:
    async with greeted_client(server.path) as client:
        posted: list[PackableRequest] = [
            RegionWrite(0, BAR0, b"posted"),
            RegionWrite(0, 99, b"nowhere"),
            RegionWrite(0, BAR0, b"x" * 5000),
            RegionRead(0, BAR0, 4),
            DeviceReset(),
            Version(0, 1),
        ]
        for value in posted:
            await client.command(value, message_id=1, no_reply=True)
        await client.send(encode(1, 14, FLAG_NO_REPLY))
        reply = await client.ask(GetInfo(), message_id=2)
        assert reply.header.message_id == 2
    assert device.data[BAR0][:6] == b"posted"
    assert device.resets == 1


async def test_the_message_id_is_the_clients_to_choose(server: Server) -> None:
    async with greeted_client(server.path) as client:
        for message_id in (0, 0xFFFF, 0, 0):
            assert (await client.ask(GetInfo(), message_id=message_id)).header.message_id == message_id


@pytest.mark.parametrize(
    "value",
    [GetInfo(), RegionRead(0, CONFIG, 4), RegionWrite(0, CONFIG, b"1234"), DeviceReset(), Version(0, 1)],
)
async def test_fds_where_none_belong_are_refused_and_closed(
    server: Server, value: GetInfo | RegionRead | RegionWrite | DeviceReset | Version
) -> None:
    reader, writer = os.pipe()
    async with greeted_client(server.path) as client:
        assert await client.refusal(value, [writer]) == errno.EINVAL
        os.close(writer)
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(reader)
        assert not (await client.ask(GetInfo())).header.is_error
    os.close(reader)


async def test_more_fds_than_negotiated_end_the_connection(server: Server, log: list[EventDict]) -> None:
    reader, writer = os.pipe()
    async with greeted_client(server.path) as client:
        await client.command(GetInfo(), [writer] * (MAX_FDS + 1))
        assert await client.ended()
    os.close(writer)
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(reader)
    os.close(reader)
    await assert_served(server)
    assert len(dropped(log)) == 1
    assert "file descriptors" in dropped(log)[0]


async def test_fds_in_the_middle_of_a_message_belong_to_it(server: Server) -> None:
    reader, writer = os.pipe()
    message = encode_request(1, GetInfo())
    async with greeted_client(server.path) as client:
        await client.send(message[:HEADER_SIZE])
        await trio.testing.wait_all_tasks_blocked()
        await client.send(message[HEADER_SIZE:], [writer])
        assert error_of(await client.message()) == errno.EINVAL
    os.close(reader)
    os.close(writer)


async def test_fds_of_a_message_that_never_ends_are_closed(server: Server) -> None:
    reader, writer = os.pipe()
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, GetInfo())[:20], [writer])
        await trio.testing.wait_all_tasks_blocked()
    os.close(writer)
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(reader)
    os.close(reader)


async def test_a_client_that_leaves_its_own_socket_in_half_a_message_does_not_stay(
    server: Server, log: list[EventDict], autojump_clock: MockClock
) -> None:
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, DmaUnmap(0, PAGE))[:20], [client.sock.fileno()])
    await assert_served(server)
    assert dropped(log) == ["no end of a message with fds in 3 s"]


async def test_a_message_with_fds_may_take_its_time_as_long_as_it_goes_on(
    server: Server, autojump_clock: MockClock
) -> None:
    data = encode_request(1, GetInfo())
    async with greeted_client(server.path) as client:
        for place, byte in enumerate(data):
            await client.send(bytes([byte]), [0] if place == 0 else [])
            await trio.sleep(STALLED_SECONDS / 2)
        assert error_of(await client.message()) == errno.EINVAL


async def test_a_client_that_closes_its_sending_side_still_gets_its_replies(server: Server) -> None:
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, GetInfo()) + encode_request(2, RegionRead(0, CONFIG, 4)))
        client.sock.shutdown(socket.SHUT_WR)
        assert DeviceInfo.unpack((await client.message()).payload).num_regions == 9
        assert (await client.message()).header.message_id == 2
        assert await client.ended()


async def test_requests_of_several_tasks_are_matched_with_their_replies(
    server: Server, device: RegisterDevice
) -> None:
    device.data[BAR0][:] = os.urandom(4096)

    async with open_client(server.path) as client:

        async def read(start: int) -> None:
            for offset in range(start, 4096, 512):
                assert await client.region_read(BAR0, offset, 8) == device.data[BAR0][offset : offset + 8]

        async with trio.open_nursery() as nursery:
            for start in range(0, 512, 16):
                nursery.start_soon(read, start)
