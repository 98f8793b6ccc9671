"""The start of a connection: VERSION, what comes before and after it, and clients that never say it."""

from __future__ import annotations

import errno
import json
import os
import struct

import pytest
import trio
from structlog.typing import EventDict
from trio.testing import MockClock

from protocol import (
    Capabilities,
    Command,
    DeviceInfo,
    GetInfo,
    MessageType,
    RegionRead,
    TwinSocket,
    Version,
    encode,
    encode_reply,
    encode_request,
)
from server.client import RemoteError, open_client
from server.engine import ATTACH_SECONDS
from server.native.serve import HANDSHAKE_SECONDS
from tests.server.register_device import CONFIG
from tests.server.running import Server
from tests.server.transports.raw import error_of, greeted_client, raw_client


def dropped(log: list[EventDict]) -> list[str]:
    return [event["reason"] for event in log if event["event"] == "client_dropped"]


async def assert_served(server: Server) -> None:
    with trio.fail_after(60):
        async with open_client(server.path) as client:
            assert await client.region_read(CONFIG, 0, 4) == b"\x36\x1b\x01\x00"


async def test_version_is_answered_with_what_was_agreed(server: Server) -> None:
    proposal = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, pgsizes=4096, write_multiple=True)
    async with raw_client(server.path) as client:
        reply = await client.say_version(proposal)
    assert struct.unpack_from("=HH", reply.payload) == (0, 1)
    document = json.loads(bytes(reply.payload[4:]).rstrip(b"\0"))
    assert document["capabilities"] == {"max_msg_fds": 16, "write_multiple": True}
    assert reply.fds == ()


async def test_a_client_without_capabilities_gets_the_defaults(server: Server) -> None:
    async with open_client(server.path, capabilities=None) as client:
        assert client.agreement.server_max_msg_fds == 1
        assert client.agreement.twin_socket_fd is None
        assert not client.agreement.write_multiple
        assert (await client.get_info()).num_regions == 9


@pytest.mark.parametrize(
    "command", [Command.REGION_READ, Command.DMA_MAP, Command.DEVICE_RESET, Command.DMA_READ, 14, 0, 0xFFFF]
)
async def test_a_command_before_version_is_refused_and_ends_the_connection(
    server: Server, log: list[EventDict], command: int
) -> None:
    async with raw_client(server.path) as client:
        assert error_of(await client.ask_raw(command, bytes(32))) == errno.EINVAL
        assert await client.ended()
    await assert_served(server)
    assert dropped(log) == ["the first message must be VERSION"]


async def test_a_reply_instead_of_version_ends_the_connection(server: Server, log: list[EventDict]) -> None:
    async with raw_client(server.path) as client:
        await client.send(encode_reply(1, Command.VERSION, Version(0, 1)))
        assert await client.ended()
    await assert_served(server)
    assert len(dropped(log)) == 1


async def test_a_second_version_is_refused_and_the_connection_goes_on(server: Server) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(Version(0, 1)) == errno.EINVAL
        reply = await client.ask(GetInfo())
        assert DeviceInfo.unpack(reply.payload).num_irqs == 5


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", errno.EINVAL),
        (b"\0\0\0", errno.EINVAL),
        (struct.pack("=HH", 1, 0), errno.EOPNOTSUPP),
        (struct.pack("=HH", 0, 1) + b"{", errno.EINVAL),
        (struct.pack("=HH", 0, 1) + b"[]\0", errno.EINVAL),
        (struct.pack("=HH", 0, 1) + b'{"capabilities":{"max_msg_fds":-1}}\0', errno.EINVAL),
        (struct.pack("=HH", 0, 1) + b'{"capabilities":{"pgsizes":8192}}\0', errno.EOPNOTSUPP),
        (struct.pack("=HH", 0, 1) + b"[" * 2000 + b"]" * 2000 + b"\0", errno.EINVAL),
        (struct.pack("=HH", 0, 1) + b" " * 5000 + b"\0", errno.E2BIG),
        (struct.pack("=HH", 0, 1) + b"\xff\xfe\0", errno.EINVAL),
    ],
)
async def test_a_version_that_cannot_be_agreed_on_is_refused(
    server: Server, log: list[EventDict], payload: bytes, code: int
) -> None:
    async with raw_client(server.path) as client:
        assert error_of(await client.ask_raw(Command.VERSION, payload)) == code
        assert await client.ended()
    await assert_served(server)
    assert len(dropped(log)) == 1


async def test_fds_that_come_with_version_are_closed(server: Server) -> None:
    reader, writer = os.pipe()
    async with raw_client(server.path) as client:
        await client.ask_raw(Command.VERSION, Version(0, 1).pack(), [writer])
        os.close(writer)
        # The end of the pipe shows only when the server's copy is closed, too.
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 1) == b""
    os.close(reader)


async def test_requests_right_behind_version_are_served_in_order(server: Server) -> None:
    messages = encode_request(1, Version(0, 1)) + encode_request(2, GetInfo())
    messages += encode_request(3, RegionRead(0, CONFIG, 4))
    async with raw_client(server.path) as client:
        await client.send(messages)
        with trio.fail_after(60):
            replies = [await client.message() for _ in range(3)]
    assert [reply.header.message_id for reply in replies] == [1, 2, 3]
    assert not any(reply.header.is_error for reply in replies)


async def test_a_version_that_comes_byte_by_byte_is_understood(server: Server) -> None:
    async with raw_client(server.path) as client:
        for byte in encode_request(5, Version(0, 1, Capabilities(max_msg_fds=8))):
            await client.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await client.message()).header.message_id == 5


async def test_a_silent_client_blocks_nobody(server: Server) -> None:
    async with raw_client(server.path), raw_client(server.path):
        await assert_served(server)


async def test_a_silent_client_is_dropped_in_the_end(
    server: Server, log: list[EventDict], autojump_clock: MockClock
) -> None:
    async with raw_client(server.path) as client:
        assert await client.ended()
    assert trio.current_time() >= HANDSHAKE_SECONDS
    assert dropped(log) == ["no VERSION in 10 s"]


async def test_a_client_that_trickles_is_dropped_in_the_end(
    server: Server, log: list[EventDict], autojump_clock: MockClock
) -> None:
    message = encode_request(1, Version(0, 1))
    async with raw_client(server.path) as client:
        for byte in message[:-1]:
            await client.send(bytes([byte]))
            await trio.sleep(HANDSHAKE_SECONDS / len(message) * 0.9)
        assert await client.ended()
    assert dropped(log) == ["no VERSION in 10 s"]


async def test_a_client_that_leaves_before_version_is_noted(server: Server, log: list[EventDict]) -> None:
    async with raw_client(server.path):
        pass
    await assert_served(server)
    assert any(event["event"] == "client_left" and event.get("before") == "VERSION" for event in log)


async def test_a_second_client_is_told_that_the_device_is_busy(
    server: Server, autojump_clock: MockClock
) -> None:
    async with open_client(server.path) as first:
        with pytest.raises(RemoteError) as refusal:
            async with open_client(server.path):
                pass
        assert refusal.value.errno == errno.EBUSY
        assert trio.current_time() >= ATTACH_SECONDS
        assert await first.region_read(CONFIG, 0, 4) == b"\x36\x1b\x01\x00"


async def test_a_second_client_waits_a_moment_for_the_first_to_go(
    server: Server, autojump_clock: MockClock
) -> None:
    attached = trio.Event()

    async def second() -> None:
        await assert_served(server)
        attached.set()

    async with trio.open_nursery() as nursery:
        async with open_client(server.path):
            nursery.start_soon(second)
            await trio.sleep(ATTACH_SECONDS / 2)
            assert not attached.is_set()
        await attached.wait()


async def test_the_twin_socket_is_given_only_to_clients_that_ask(server: Server) -> None:
    async with raw_client(server.path) as client:
        reply = await client.say_version(Capabilities(twin_socket=TwinSocket(supported=True)))
        document = json.loads(bytes(reply.payload[4:]).rstrip(b"\0"))
        assert document["capabilities"]["twin_socket"] == {"supported": True, "fd_index": 0}
        (twin,) = reply.fds
        os.close(twin)
    async with raw_client(server.path) as client:
        reply = await client.say_version(Capabilities(twin_socket=TwinSocket(supported=False)))
        assert reply.fds == ()
        assert b"twin_socket" not in reply.payload.tobytes()


async def test_a_version_that_wants_no_reply_still_opens_the_connection(server: Server) -> None:
    async with raw_client(server.path) as client:
        await client.send(encode(1, Command.VERSION, MessageType.COMMAND | 1 << 4, Version(0, 1).pack()))
        await client.command(GetInfo(), message_id=2)
        with trio.fail_after(60):
            message = await client.message()
            if message.header.message_id == 1:
                message = await client.message()
        assert not message.header.is_error
