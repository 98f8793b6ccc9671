"""The client against a server that a test plays by hand, on the other end of a socket pair."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from protocol import (
    Acknowledgement,
    Capabilities,
    Command,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    DeviceReset,
    DmaLoggingReport,
    DmaRead,
    DmaReadReply,
    DmaWrite,
    DmaWriteReply,
    Feature,
    FeatureFlags,
    GetInfo,
    GetRegionInfo,
    Message,
    MessageType,
    ProtocolError,
    RegionFlags,
    RegionInfo,
    RegionReadReply,
    RegionWrite,
    RegionWriteReply,
    SparseArea,
    SparseMmap,
    TwinSocket,
    Version,
    encode,
    encode_error,
    encode_reply,
    encode_request,
)
from server.client import ClientMemory, RemoteError, VfioUserClient, attach_client
from tests.server.transports.raw import RawClient, error_of

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

INFO = DeviceInfo(DeviceFlags.PCI, 9, 5)


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(b"the client's memory")

    def read(self, address: int, count: int) -> bytes:
        if address + count > len(self.data):
            raise OSError(errno.EFAULT, "no such memory")
        return bytes(self.data[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[socket.socket, RawClient]]:
    """The client's end, and the server's, to read and write whole messages by hand."""
    ours, theirs = socket.socketpair()
    with ours, trio.socket.from_stdlib_socket(theirs) as sock:
        yield ours, RawClient(sock)


@asynccontextmanager
async def greeted(memory: ClientMemory | None = None) -> AsyncIterator[tuple[VfioUserClient, RawClient]]:
    """A client, and the server that has answered its VERSION."""
    async with pair() as (ours, server):
        await server.send(encode_reply(0, Command.VERSION, Version(0, 1, Capabilities(max_msg_fds=16))))
        async with attach_client(ours, memory=memory) as client:
            assert (await server.message()).header.command == Command.VERSION
            yield client, server


async def answer(server: RawClient, reply: bytes | None = None) -> Message:
    """Take a request and answer it, well by default."""
    request = await server.message()
    header = request.header
    await server.send(encode_reply(header.message_id, header.command, INFO) if reply is None else reply)
    return request


async def outcome(call: Callable[[], Awaitable[object]]) -> object:
    try:
        return await call()
    except Exception as error:
        return error


async def both(call: Callable[[], Awaitable[object]], server: RawClient, reply: bytes) -> object:
    """What a call comes to when the server answers its one request with ``reply``."""
    result: list[object] = []

    async def run() -> None:
        result.append(await outcome(call))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await answer(server, reply)
    return result[0]


async def test_replies_are_matched_by_message_id_in_any_order() -> None:
    async with greeted() as (client, server):
        first = await client.submit(Command.DEVICE_GET_INFO, GetInfo().pack())
        second = await client.submit(Command.DEVICE_RESET)
        ids = [(await server.message()).header.message_id for _ in range(2)]
        assert ids[0] != ids[1]
        await server.send(encode_reply(ids[1], Command.DEVICE_RESET, Acknowledgement()))
        await server.send(encode_reply(ids[0], Command.DEVICE_GET_INFO, INFO))
        assert (await first.wait()).header.command == Command.DEVICE_GET_INFO
        assert (await second.wait()).header.command == Command.DEVICE_RESET


async def test_an_error_reply_is_an_os_error_with_its_errno() -> None:
    async with greeted() as (client, server):
        error = await both(client.reset, server, encode_error(0, Command.DEVICE_RESET, errno.EPERM))
        assert isinstance(error, RemoteError)
        assert (error.errno, error.command) == (errno.EPERM, Command.DEVICE_RESET)
        assert "DEVICE_RESET" in str(error)
        silent = await both(client.reset, server, encode_error(1, Command.DEVICE_RESET, 0))
        assert isinstance(silent, RemoteError)
        assert silent.errno == errno.EIO


async def test_a_post_waits_for_nothing_and_says_so() -> None:
    async with greeted() as (client, server):
        await client.post(RegionWrite(0, 0, b"1234"))
        assert (await server.message()).header.no_reply


@pytest.mark.parametrize(
    "reply",
    [
        encode_reply(99, Command.DEVICE_GET_INFO, INFO),
        b"\xff" * 64,
        encode(0, Command.DEVICE_GET_INFO, MessageType.REPLY, b"short"),
        encode_reply(0, Command.DEVICE_GET_INFO, INFO)[:20],
    ],
    ids=["unknown id", "garbage", "malformed", "cut off"],
)
async def test_a_server_that_breaks_the_protocol_fails_the_request(reply: bytes) -> None:
    async with greeted() as (client, server):

        async def answer_and_leave() -> None:
            await answer(server, reply)
            server.sock.close()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_and_leave)
                error = await outcome(client.get_info)
        assert isinstance(error, Exception)
        later = await outcome(client.reset)
        assert isinstance(later, Exception)


async def test_a_server_that_hangs_up_fails_everything_under_way() -> None:
    async with greeted() as (client, server):
        pending = [await client.submit(Command.DEVICE_RESET) for _ in range(3)]
        server.sock.close()
        for reply in pending:
            with pytest.raises(ConnectionError):
                await reply.wait()
        with pytest.raises(ConnectionError):
            await client.reset()


async def test_a_reply_about_another_register_breaks_the_protocol() -> None:
    async with greeted() as (client, server):
        wrong = encode_reply(0, Command.REGION_READ, RegionReadReply(8, 0, b"1234"))
        assert "another" in str(await both(lambda: client.region_read(0, 0, 4), server, wrong))
        short = encode_reply(1, Command.REGION_READ, RegionReadReply(0, 0, b"12"))
        assert "another" in str(await both(lambda: client.region_read(0, 0, 4), server, short))
        in_part = encode_reply(2, Command.REGION_WRITE, RegionWriteReply(0, 0, 2))
        assert "another" in str(await both(lambda: client.region_write(0, 0, b"1234"), server, in_part))


async def test_a_region_info_that_was_cut_is_asked_for_again_with_more_room() -> None:
    whole = RegionInfo(3, RegionFlags.MMAP, 1 << 20, 0, (SparseMmap((SparseArea(0, 4096),)),))
    reader, writer = os.pipe()
    async with greeted() as (client, server):

        async def serve() -> None:
            for _ in range(2):
                message = await server.message()
                request = GetRegionInfo.unpack(message.payload)
                reply = encode_reply(
                    message.header.message_id, message.header.command, whole.pack(request.argsz)
                )
                await server.send(reply, [writer])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            info, fds = await client.get_region_info(3)
        assert info == whole
        assert len(fds) == 1
        fds.close()
    os.close(reader)
    os.close(writer)


async def test_fds_of_a_reply_that_nobody_takes_are_closed_with_the_client() -> None:
    reader, writer = os.pipe()
    async with greeted() as (client, server):
        for _ in range(2):
            await client.submit(Command.DEVICE_GET_REGION_INFO, GetRegionInfo(0).pack())
            message = await server.message()
            reply = encode_reply(
                message.header.message_id, message.header.command, RegionInfo(0, RegionFlags.NONE, 0)
            )
            await server.send(reply, [writer])
            await trio.testing.wait_all_tasks_blocked()
    os.close(reader)
    os.close(writer)


async def test_fds_with_a_reply_that_brings_none_break_the_protocol() -> None:
    reader, writer = os.pipe()
    async with greeted() as (client, server):

        async def serve() -> None:
            message = await server.message()
            await server.send(encode_reply(message.header.message_id, message.header.command, INFO), [writer])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            error = await outcome(client.get_info)
        assert "fds" in str(error)
    os.close(reader)
    os.close(writer)


async def test_fds_that_are_sent_stay_the_callers() -> None:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    async with greeted() as (client, server):

        async def serve() -> None:
            message = await server.message()
            assert len(message.fds) == 1
            os.close(message.fds[0])
            await server.send(encode_reply(message.header.message_id, Command.DMA_MAP, Acknowledgement()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await client.dma_map(0, 4096, fd=fd)
    os.fstat(fd)
    os.close(fd)


async def test_the_servers_requests_are_answered_from_the_clients_memory() -> None:
    memory = Memory()
    async with greeted(memory) as (_, server):
        reply = await server.ask(DmaRead(4, 6))
        assert DmaReadReply.unpack(reply.payload) == DmaReadReply(4, b"client")
        reply = await server.ask(DmaWrite(4, b"server"))
        assert DmaWriteReply.unpack(reply.payload) == DmaWriteReply(4, 6)
        assert memory.data == b"the server's memory"


async def test_a_request_of_the_server_that_cannot_be_is_refused() -> None:
    async with greeted(Memory()) as (_, server):
        assert error_of(await server.ask(DmaRead(1000, 4))) == errno.EFAULT
        assert error_of(await server.ask(DmaRead(0, 1 << 40))) == errno.EINVAL
        assert error_of(await server.ask(DeviceReset())) == errno.ENOSYS
        assert error_of(await server.ask_raw(14)) == errno.ENOSYS
        assert error_of(await server.ask_raw(Command.DMA_READ, b"short")) == errno.EINVAL
        reader, writer = os.pipe()
        assert error_of(await server.ask(DmaRead(0, 4), [reader])) == errno.EINVAL
        os.close(reader)
        os.close(writer)
    async with greeted(None) as (_, server):
        assert error_of(await server.ask(DmaRead(0, 4))) == errno.EINVAL


async def test_answers_to_a_server_that_does_not_read_wait_without_stopping_the_client() -> None:
    class Zeros(Memory):
        def read(self, address: int, count: int) -> bytes:
            return bytes(count)

    requests = 20
    async with greeted(Zeros()) as (client, server):
        pending = await client.submit(Command.DEVICE_RESET)
        await server.message()
        for number in range(requests):
            await server.send(encode_request(number, DmaRead(0, 1 << 18)))
        await server.send(encode_reply(0, Command.DEVICE_RESET, Acknowledgement()))
        with trio.fail_after(60):
            await pending.wait()
            for number in range(requests):
                assert (await server.message()).header.message_id == number


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        encode_error(0, Command.VERSION, errno.EOPNOTSUPP),
        encode_reply(1, Command.VERSION, Version(0, 1)),
        encode_reply(0, Command.DEVICE_RESET, Version(0, 1)),
        encode_request(0, Version(0, 1)),
        encode_reply(0, Command.VERSION, Version(1, 0)),
        encode_reply(0, Command.VERSION, Version(0, 2)),
        encode_reply(0, Command.VERSION, Version(0, 1, Capabilities(twin_socket=TwinSocket(True, 0)))),
        encode_reply(0, Command.VERSION, b"\0"),
    ],
    ids=["hung up", "refused", "id", "command", "request", "major", "minor", "twin without fd", "short"],
)
async def test_a_handshake_that_fails_is_an_error(reply: bytes) -> None:
    async with pair() as (ours, server):
        await server.send(reply)
        server.sock.shutdown(socket.SHUT_WR)
        capabilities = Capabilities(twin_socket=TwinSocket(supported=True))
        with pytest.raises((OSError, ProtocolError)):
            async with attach_client(ours, capabilities=capabilities):
                pass


async def test_what_fails_inside_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with greeted():
            raise KeyError


async def test_a_request_after_the_block_fails() -> None:
    async with AsyncExitStack() as stack:
        client, _ = await stack.enter_async_context(greeted())
    with pytest.raises(ConnectionError):
        await client.reset()


@pytest.mark.parametrize(
    "wrong",
    [
        DmaLoggingReport(4096, 4096, 4096, bytes(8)),
        DmaLoggingReport(0, 8192, 4096, bytes(8)),
        DmaLoggingReport(0, 4096, 8192, bytes(8)),
        DmaLoggingReport(0, 4096, 4096),
    ],
)
async def test_a_report_of_another_range_is_a_protocol_error(wrong: DmaLoggingReport) -> None:
    async with greeted() as (client, server):
        reply = DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, wrong.pack())
        error = await both(
            lambda: client.report_dma_logging(0, 4096),
            server,
            encode_reply(0, Command.DEVICE_FEATURE, reply),
        )
        assert isinstance(error, ProtocolError)


async def test_a_report_leaves_room_for_its_bitmap() -> None:
    async with greeted() as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, lambda: client.report_dma_logging(0, 65 * 4096, 4096))
            request = DeviceFeature.unpack((await server.message()).payload)
            nursery.cancel_scope.cancel()
        assert request.argsz == 8 + 24 + 16
        assert DmaLoggingReport.unpack(request.data) == DmaLoggingReport(0, 65 * 4096, 4096)
