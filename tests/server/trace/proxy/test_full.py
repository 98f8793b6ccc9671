"""A proxy that sees everything: no memory is shared past it, and it answers for the client."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from structlog.typing import EventDict

from protocol import (
    Capabilities,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaWrite,
    DmaWriteReply,
    Message,
    encode_error,
    encode_reply,
)
from server.client import open_client
from tests.fds import open_fds
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.proxy.proxies import (
    FROM_CLIENT,
    FROM_SERVER,
    Pair,
    open_twin,
    running_proxy,
)
from tests.server.transports.raw import RawClient, error_of
from tests.server.transports.test_client_memory import DOORBELL, TWIN, Job, on_both_sockets

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
TOP = 1 << 64


@pytest.fixture
def full() -> bool:
    return True


async def map_memory(pair: Pair, request: DmaMap, fds: list[int], code: int = 0) -> Message:
    """Have the client map memory, and the server accept it, or refuse with ``code``; what the server got."""
    await pair.client.command(request, fds)
    got = await pair.server.message()
    header = got.header
    assert header.command == Command.DMA_MAP
    await pair.server.send(
        encode_error(header.message_id, header.command, code)
        if code
        else encode_reply(header.message_id, header.command)
    )
    assert (await pair.client.message()).header.error == code
    return got


async def unmap_memory(pair: Pair, request: DmaUnmap, code: int = 0) -> None:
    await pair.client.command(request)
    header = (await pair.server.message()).header
    reply = encode_reply(header.message_id, header.command, request.reply())
    await pair.server.send(encode_error(header.message_id, header.command, code) if code else reply)
    assert (await pair.client.message()).header.error == code


async def read(server: RawClient, address: int, count: int) -> bytes:
    """What the server gets when it reads the client's memory."""
    answer = await server.ask(DmaRead(address, count))
    assert not answer.header.is_error
    return DmaReadReply.unpack(answer.payload).data


async def is_asked(pair: Pair, address: int, count: int) -> bool:
    """Whether a DMA_READ is for the client to answer; it does."""
    await pair.server.command(DmaRead(address, count), message_id=40)
    request = await pair.client.message()
    assert (request.header.message_id, request.header.command) == (40, Command.DMA_READ)
    assert DmaRead.unpack(request.payload) == DmaRead(address, count)
    await pair.client.send(encode_reply(40, Command.DMA_READ, DmaReadReply(address, b"from the client")))
    reply = await pair.server.message()
    return bytes(reply.payload[16:]) == b"from the client"


@on_both_sockets
async def test_a_device_reads_and_writes_shared_memory_in_messages_that_the_client_never_sees(
    tmp_path: Path, memfd: int, capabilities: Capabilities
) -> None:
    on_twin = capabilities is TWIN
    device = RegisterDevice()
    os.pwrite(memfd, b"from the guest", 3 * PAGE)
    job = Job(device, PAGE, 8 * PAGE + 1, 14)
    async with (
        running_server(device) as server,
        running_proxy(server.path, tmp_path, full=True) as proxy,
        open_client(proxy.path, capabilities=capabilities) as client,
    ):
        await client.dma_map(0, 16 * PAGE, fd=memfd, offset=2 * PAGE)
        await client.region_write(BAR0, DOORBELL, b"go")
        await job.wait()
    assert job.error is None
    assert os.pread(memfd, 14, 10 * PAGE + 1) == b"from the guest"
    dma = [one for one in proxy.messages() if one.header.command in (Command.DMA_READ, Command.DMA_WRITE)]
    assert [(one.header.command, one.direction, one.facts.twin) for one in dma] == [
        (Command.DMA_READ, FROM_SERVER, on_twin),
        (Command.DMA_READ, FROM_CLIENT, on_twin),
        (Command.DMA_WRITE, FROM_SERVER, on_twin),
        (Command.DMA_WRITE, FROM_CLIENT, on_twin),
    ]
    assert DmaReadReply.unpack(dma[1].payload) == DmaReadReply(PAGE, b"from the guest")
    assert DmaWrite.unpack(dma[2].payload) == DmaWrite(8 * PAGE + 1, b"from the guest")
    assert proxy.messages(Command.DMA_MAP)[0].facts.fds == ()  # the trace has what the server got
    (session,) = proxy.sessions()
    assert (session.info.recorder, session.info.memory, session.info.interrupts) == (
        "vgpud trace record",
        True,
        True,
    )


async def test_a_dma_map_comes_without_its_fd_and_says_nothing_of_it(pair: Pair, memfd: int) -> None:
    flags = READ_WRITE | DmaMapFlags.MAPPABLE
    got = await map_memory(pair, DmaMap(PAGE, PAGE, flags, offset=5 * PAGE), [memfd])
    assert got.fds == ()
    assert DmaMap.unpack(got.payload) == DmaMap(PAGE, PAGE, READ_WRITE, offset=5 * PAGE)
    (recorded, _) = pair.proxy.messages(Command.DMA_MAP)
    assert recorded.payload == got.payload


async def test_memory_without_an_fd_is_for_the_client_to_answer(pair: Pair, memfd: int) -> None:
    await map_memory(pair, DmaMap(0, PAGE, READ_WRITE), [memfd])
    await map_memory(pair, DmaMap(PAGE, PAGE, READ_WRITE), [])
    assert await read(pair.server, 0, PAGE) == bytes(PAGE)
    assert await is_asked(pair, PAGE, 4)
    assert await is_asked(pair, PAGE - 2, 4), "half of it is not here"
    assert await is_asked(pair, 17 * PAGE, 4), "the client refuses what it has not mapped"


async def test_one_message_may_reach_over_several_regions(pair: Pair, memfd: int) -> None:
    await map_memory(pair, DmaMap(0, PAGE, READ_WRITE, offset=8 * PAGE), [memfd])
    await map_memory(pair, DmaMap(PAGE, PAGE, READ_WRITE), [memfd])
    written = await pair.server.ask(DmaWrite(PAGE - 3, b"across"))
    assert DmaWriteReply.unpack(written.payload) == DmaWriteReply(PAGE - 3, 6)
    assert os.pread(memfd, 3, 9 * PAGE - 3) == b"acr"
    assert os.pread(memfd, 3, 0) == b"oss"
    assert await read(pair.server, PAGE - 3, 6) == b"across"


@pytest.mark.parametrize(
    ("address", "count"),
    [(TOP - 1, 8), (TOP - 1, TOP - 1), (2 * PAGE - 4, 8), (0, TOP - 1), (0, 0), (0, 1 << 40)],
)
async def test_what_reaches_out_of_the_regions_is_not_answered_here(
    pair: Pair, memfd: int, address: int, count: int
) -> None:
    await map_memory(pair, DmaMap(PAGE, PAGE, READ_WRITE), [memfd])
    await map_memory(pair, DmaMap(TOP - PAGE, PAGE, READ_WRITE), [memfd])
    assert await is_asked(pair, address, count)


async def test_what_the_client_forbids_is_refused_in_its_name(pair: Pair, memfd: int) -> None:
    os.pwrite(memfd, b"rom", 0)
    await map_memory(pair, DmaMap(0, PAGE, DmaMapFlags.READ), [memfd])
    await map_memory(pair, DmaMap(PAGE, PAGE, DmaMapFlags.WRITE, offset=PAGE), [memfd])
    assert error_of(await pair.server.ask(DmaWrite(0, b"RAM"))) == errno.EPERM
    assert error_of(await pair.server.ask(DmaRead(PAGE, 4))) == errno.EPERM
    assert error_of(await pair.server.ask(DmaWrite(PAGE - 1, b"RAM"))) == errno.EPERM
    assert os.pread(memfd, 3, 0) == b"rom"
    assert os.pread(memfd, 4, PAGE) == bytes(4)


async def test_a_file_that_is_open_for_reading_only_is_not_written(pair: Pair, memfd: int) -> None:
    readable = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    await map_memory(pair, DmaMap(0, PAGE, READ_WRITE), [readable])
    os.close(readable)
    assert error_of(await pair.server.ask(DmaWrite(0, b"RAM"))) == errno.EPERM
    assert await read(pair.server, 0, 3) == bytes(3)


async def test_a_file_that_becomes_shorter_is_an_error_for_the_server(pair: Pair, memfd: int) -> None:
    await map_memory(pair, DmaMap(0, 4 * PAGE, READ_WRITE), [memfd])
    assert await read(pair.server, 2 * PAGE, 4) == bytes(4)
    os.ftruncate(memfd, PAGE)
    assert error_of(await pair.server.ask(DmaRead(2 * PAGE, 4))) == errno.EFAULT
    assert error_of(await pair.server.ask(DmaRead(PAGE - 2, 4))) == errno.EFAULT
    assert error_of(await pair.server.ask(DmaWrite(2 * PAGE, b"late"))) == errno.EFAULT
    assert os.fstat(memfd).st_size == PAGE
    assert await read(pair.server, 0, 4) == bytes(4)


async def test_an_answer_that_does_not_fit_in_the_socket_is_sent_as_the_server_reads_it(
    pair: Pair, memfd: int
) -> None:
    data = os.urandom(1 << 20)
    os.pwrite(memfd, data, 0)
    await map_memory(pair, DmaMap(0, 1 << 20, READ_WRITE), [memfd])
    with trio.fail_after(60):
        assert await read(pair.server, 0, 1 << 20) == data


async def test_a_request_that_wants_no_reply_gets_none(pair: Pair, memfd: int) -> None:
    await map_memory(pair, DmaMap(0, PAGE, READ_WRITE), [memfd])
    await pair.server.command(DmaWrite(0, b"done"), no_reply=True)
    await pair.server.command(DmaWrite(TOP - PAGE, b"none"), no_reply=True)
    assert await read(pair.server, 0, 4) == b"done"
    assert DmaWrite.unpack((await pair.client.message()).payload).data == b"none"


@pytest.mark.parametrize("request_", [DmaUnmap(PAGE, PAGE), DmaUnmap(flags=DmaUnmapFlags.ALL)])
async def test_unmapped_memory_is_let_go_of(pair: Pair, memfd: int, request_: DmaUnmap) -> None:
    before = open_fds()
    await map_memory(pair, DmaMap(PAGE, PAGE, READ_WRITE), [memfd])
    assert await read(pair.server, PAGE, 4) == bytes(4)
    await unmap_memory(pair, request_)
    assert await is_asked(pair, PAGE, 4)
    assert open_fds() == before


async def test_memory_stays_until_the_server_has_let_go_of_it(pair: Pair, memfd: int) -> None:
    await map_memory(pair, DmaMap(PAGE, PAGE, READ_WRITE), [memfd])
    await unmap_memory(pair, DmaUnmap(0, 2 * PAGE), errno.EINVAL)
    assert await read(pair.server, PAGE, 4) == bytes(4)
    await pair.client.command(DmaUnmap(PAGE, PAGE))
    header = (await pair.server.message()).header
    assert await read(pair.server, PAGE, 4) == bytes(4)
    await pair.server.send(encode_reply(header.message_id, header.command, DmaUnmap(PAGE, PAGE).reply()))
    await pair.client.message()
    assert await is_asked(pair, PAGE, 4)


async def test_a_map_that_the_server_refuses_changes_nothing(pair: Pair, memfd: int) -> None:
    os.pwrite(memfd, b"first", 0)
    os.pwrite(memfd, b"other", PAGE)
    await map_memory(pair, DmaMap(0, PAGE, READ_WRITE), [memfd])
    await map_memory(pair, DmaMap(0, 4 * PAGE, READ_WRITE, offset=PAGE), [memfd], errno.EEXIST)
    assert await read(pair.server, 0, 5) == b"first"
    assert await is_asked(pair, PAGE, 4)


async def test_a_map_that_the_server_takes_in_place_of_another_is_the_one_that_counts(
    pair: Pair, memfd: int
) -> None:
    os.pwrite(memfd, b"other", PAGE)
    await map_memory(pair, DmaMap(0, 4 * PAGE, READ_WRITE, offset=8 * PAGE), [memfd])
    await map_memory(pair, DmaMap(PAGE, PAGE, READ_WRITE, offset=PAGE), [memfd])
    assert await read(pair.server, PAGE, 5) == b"other"
    assert await is_asked(pair, 0, 4)


async def test_a_server_may_use_memory_before_it_has_answered_the_map(pair: Pair, memfd: int) -> None:
    os.pwrite(memfd, b"soon", 0)
    await pair.client.command(DmaMap(0, PAGE, READ_WRITE), [memfd])
    await pair.server.message()
    assert await read(pair.server, 0, 4) == b"soon"


async def test_a_map_that_wants_no_reply_counts_at_once(pair: Pair, memfd: int) -> None:
    os.pwrite(memfd, b"here", 0)
    await pair.client.command(DmaMap(0, PAGE, READ_WRITE), [memfd], no_reply=True)
    await pair.server.message()
    assert await read(pair.server, 0, 4) == b"here"
    await pair.client.command(DmaUnmap(0, PAGE), no_reply=True)
    await pair.server.message()
    assert await is_asked(pair, 0, 4)


async def test_many_maps_of_one_file_take_one_fd(pair: Pair, memfd: int) -> None:
    before = open_fds()
    for page in range(2000):
        await map_memory(pair, DmaMap(2 * page * PAGE, PAGE, READ_WRITE, page % 64 * PAGE), [memfd])
    assert open_fds() == before + 1
    os.pwrite(memfd, b"page 7", 7 * PAGE)
    assert await read(pair.server, 2 * (7 + 64) * PAGE, 6) == b"page 7"


async def test_an_fd_that_is_no_file_leaves_its_memory_to_the_client(
    pair: Pair, log: list[EventDict]
) -> None:
    reader, writer = os.pipe()
    got = await map_memory(pair, DmaMap(0, PAGE, READ_WRITE), [reader])
    os.close(reader)
    os.close(writer)
    assert got.fds == ()
    assert await is_asked(pair, 0, 4)
    assert [one["event"] for one in log if one["log_level"] == "warning"] == ["dma_fd_unusable"]


async def test_a_twin_socket_passes_what_the_proxy_does_not_answer(pair: Pair, memfd: int) -> None:
    clients, servers = await open_twin(pair)
    with clients, servers:
        client, server = RawClient(clients), RawClient(servers)
        await map_memory(pair, DmaMap(0, PAGE, READ_WRITE), [memfd])
        assert await read(server, 0, 4) == bytes(4)
        await server.command(DmaRead(PAGE, 4))
        assert (await client.message()).header.command == Command.DMA_READ
        await client.send(encode_reply(7, Command.DMA_READ, DmaReadReply(PAGE, b"mine")))
        assert DmaReadReply.unpack((await server.message()).payload).data == b"mine"
    assert [one.facts.twin for one in pair.proxy.messages(Command.DMA_READ)] == [True] * 4
