"""A proxy that changes nothing: bytes, fds and ends pass as they are, and the trace has every message."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import pytest
import trio
from structlog.typing import EventDict

from protocol import (
    HEADER_SIZE,
    Command,
    DmaMap,
    DmaMapFlags,
    GetInfo,
    Header,
    IrqAction,
    IrqData,
    MessageType,
    SetIrqs,
    Version,
    encode,
    encode_error,
    encode_reply,
    encode_request,
)
from server.client import open_client
from server.fds import ReceivedFds
from server.trace.fd_facts import fd_facts
from server.trace.proxy.tap import MAX_DATA
from server.trace.reader import TracedMalformed
from tests.server.register_device import BAR0, BAR3, MSIX, PAGE, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.proxy.proxies import (
    FROM_CLIENT,
    FROM_SERVER,
    Pair,
    open_twin,
    running_proxy,
    same_file,
    send_at_once,
)
from tests.server.transports.raw import RawClient
from tests.server.transports.test_client_memory import DOORBELL, MAPPED, TWIN, Job, Memory

DMA_MAP = encode_request(2, DmaMap(0, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE))


async def read_all(side: RawClient, size: int) -> bytes:
    """The next ``size`` bytes that a side gets."""
    data = bytearray()
    with trio.fail_after(60):
        while len(data) < size and (part := await side.sock.recv(size - len(data))):
            data += part
    return bytes(data)


async def test_the_trace_has_every_message_in_order_and_what_is_known_of_its_fds(
    tmp_path: Path, memfd: int
) -> None:
    device = RegisterDevice()
    device.share_bar3()
    eventfd = os.eventfd(0)
    async with (
        running_server(device) as server,
        running_proxy(server.path, tmp_path, full=False) as proxy,
        open_client(proxy.path) as client,
    ):
        await client.dma_map(0, PAGE, fd=memfd)
        await client.set_irqs(SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), [eventfd])
        _, fds = await client.get_region_info(BAR3)
        with fds:
            assert same_file(fds.numbers[0], device.shared_fd)
        await client.region_write(BAR0, 8, b"abcd")
        assert await client.region_read(BAR0, 8, 4) == b"abcd"
        bar3 = fd_facts(device.shared_fd)
        expected = [
            (Command.VERSION, (), ()),
            (Command.DMA_MAP, (fd_facts(memfd),), ()),
            (Command.DEVICE_SET_IRQS, (fd_facts(eventfd),), ()),
            (Command.DEVICE_GET_REGION_INFO, (), (bar3,)),  # cut, so the client asks again
            (Command.DEVICE_GET_REGION_INFO, (), (bar3,)),
            (Command.REGION_WRITE, (), ()),
            (Command.REGION_READ, (), ()),
        ]
    device.close()
    os.close(eventfd)
    messages = proxy.messages()
    assert [(one.header.command, one.direction, one.facts.fds) for one in messages] == [
        (command, direction, fds)
        for command, asked, replied in expected
        for direction, fds in ((FROM_CLIENT, asked), (FROM_SERVER, replied))
    ]
    assert bytes(messages[-1].payload[-4:]) == b"abcd"
    (session,) = proxy.sessions()
    assert (session.info.recorder, session.info.memory, session.info.interrupts) == (
        "vgpud trace record",
        False,
        False,
    )


async def test_an_fd_comes_with_its_message_also_where_others_lie_before_it(pair: Pair, memfd: int) -> None:
    """Who reads a header at a time, as libvfio-user does, must not find the fd with the message before."""
    info = encode_request(1, GetInfo())
    send_at_once(pair.client, (info, []), (info, []), (DMA_MAP, [memfd]), (info, []))
    messages = [await pair.server.message() for _ in range(4)]
    assert [len(message.fds) for message in messages] == [0, 0, 1, 0]
    with ReceivedFds(messages[2].fds) as fds:
        assert same_file(fds.numbers[0], memfd)
    with_fds = [one for one in pair.proxy.messages() if one.facts.fds]
    assert [one.header.command for one in with_fds] == [Command.DMA_MAP]


async def test_an_fd_comes_with_the_part_of_a_message_that_brought_it(pair: Pair, memfd: int) -> None:
    send_at_once(pair.client, (DMA_MAP[:20], []))
    assert await read_all(pair.server, 20) == DMA_MAP[:20]
    send_at_once(pair.client, (DMA_MAP[20:], [memfd]))
    data, ancillary, _, _ = await pair.server.sock.recvmsg(100, 100)
    assert data == DMA_MAP[20:]
    assert len(ancillary) == 1
    os.close(int.from_bytes(ancillary[0][2], "little"))


async def test_more_fds_than_a_message_may_have_pass(pair: Pair, memfd: int) -> None:
    await pair.client.send(DMA_MAP, [memfd] * 253)
    data, ancillary, _, _ = await pair.server.sock.recvmsg(100, 4096)
    assert data == DMA_MAP
    received = ancillary[0][2]
    assert len(received) == 253 * 4
    for at in range(0, len(received), 4):
        os.close(int.from_bytes(received[at : at + 4], "little"))


async def test_a_message_that_is_too_long_to_be_recorded_passes_and_that_is_said_once(
    pair: Pair, log: list[EventDict], memfd: int
) -> None:
    size = 2 * MAX_DATA
    message = Header(1, Command.REGION_WRITE, size).pack() + bytes(size - HEADER_SIZE)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(pair.client.send, message)
            assert await read_all(pair.server, size) == message
    await pair.client.send(DMA_MAP, [memfd])
    request = await pair.server.message()
    with ReceivedFds(request.fds) as fds:
        assert len(fds) == 1
    await pair.server.send(encode_error(1, Command.REGION_WRITE, errno.E2BIG))
    assert (await pair.client.message()).header.error == errno.E2BIG
    assert [one.direction for one in pair.proxy.messages()] == [FROM_SERVER]
    said = [event for event in log if event["event"] == "recording_stopped"]
    assert [(event["sender"], event["log_level"]) for event in said] == [("client", "warning")]


@pytest.mark.parametrize("sender", ["client", "server"])
async def test_what_is_no_message_passes_as_it_is(pair: Pair, log: list[EventDict], sender: str) -> None:
    garbage = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    source, target = (pair.client, pair.server) if sender == "client" else (pair.server, pair.client)
    for _ in range(3):
        await source.send(garbage)
        assert await read_all(target, len(garbage)) == garbage
    assert [one["sender"] for one in log if one["event"] == "recording_stopped"] == [sender]
    (recorded,) = (one for one in pair.proxy.recorded() if isinstance(one, TracedMalformed))
    assert recorded.inbound == (sender == "client")
    # Of a server's first message the header is read first.
    assert recorded.malformed.data == (garbage if sender == "client" else garbage[:HEADER_SIZE])
    await target.send(garbage)
    assert await read_all(source, len(garbage)) == garbage


async def test_a_side_that_does_not_read_is_not_sent_more_than_fits_and_gets_all_of_it_later(
    pair: Pair,
) -> None:
    chunk = os.urandom(1 << 16)
    sent, stalled = 0, False
    while sent < 64 << 20:
        try:
            sent += os.write(pair.client.sock.fileno(), chunk[sent % len(chunk) :])
            stalled = False
        except BlockingIOError:
            if stalled:
                break
            stalled = True
            await trio.testing.wait_all_tasks_blocked()
    assert sent < 4 << 20
    data = await read_all(pair.server, sent)
    assert data == (chunk * (sent // len(chunk) + 1))[:sent]


async def test_the_servers_requests_on_a_twin_socket_are_recorded(tmp_path: Path) -> None:
    device, memory = RegisterDevice(), Memory()
    job = Job(device, 0, PAGE, 8)
    async with (
        running_server(device) as server,
        running_proxy(server.path, tmp_path, full=False) as proxy,
        open_client(proxy.path, memory=memory, capabilities=TWIN) as client,
    ):
        assert client.agreement.twin_socket_fd == 0
        await client.dma_map(0, MAPPED)
        await client.region_write(BAR0, DOORBELL, b"go")
        await job.wait()
    twin = [one for one in proxy.messages() if one.facts.twin]
    assert [(one.header.command, one.direction) for one in twin] == [
        (Command.DMA_READ, FROM_SERVER),
        (Command.DMA_READ, FROM_CLIENT),
        (Command.DMA_WRITE, FROM_SERVER),
        (Command.DMA_WRITE, FROM_CLIENT),
    ]
    version = proxy.messages(Command.VERSION)[1]
    assert [facts.kind for facts in version.facts.fds] == ["socket"]
    assert not version.facts.twin


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_twin_socket_that_one_side_closes_is_closed_for_the_other_and_the_rest_goes_on(
    pair: Pair, who: str
) -> None:
    clients, servers = await open_twin(pair)
    first, second = (clients, servers) if who == "client" else (servers, clients)
    with first, second:
        first.close()
        with trio.fail_after(60):
            assert await second.recv(1) == b""
    await pair.client.command(GetInfo())
    assert (await pair.server.message()).header.command == Command.DEVICE_GET_INFO


async def test_fds_pass_on_a_twin_socket(pair: Pair, memfd: int) -> None:
    clients, servers = await open_twin(pair)
    with clients, servers:
        await RawClient(servers).send(DMA_MAP, [memfd])
        message = await RawClient(clients).message()
        with ReceivedFds(message.fds) as fds:
            assert same_file(fds.numbers[0], memfd)


@pytest.mark.parametrize(
    ("capabilities", "fds"),
    [
        ({"twin_socket": {"supported": True, "fd_index": 1}}, 1),
        ({"twin_socket": {"supported": True, "fd_index": 0}}, 1),  # which is no socket
        ({"twin_socket": {"supported": False, "fd_index": 0}}, 1),
        ({"twin_socket": 1}, 1),
        ({}, 2),
    ],
)
async def test_a_reply_to_version_without_a_usable_twin_socket_passes_as_it_is(
    pair: Pair, memfd: int, capabilities: dict[str, object], fds: int
) -> None:
    payload = struct.pack("=HH", 0, 1) + json.dumps({"capabilities": capabilities}).encode() + b"\0"
    await pair.server.send(encode(7, Command.VERSION, MessageType.REPLY, payload), [memfd] * fds)
    message = await pair.client.message()
    assert message.payload == payload
    with ReceivedFds(message.fds) as received:
        assert [same_file(fd, memfd) for fd in received.numbers] == [True] * fds


async def test_a_reply_to_version_may_come_in_pieces(pair: Pair) -> None:
    reply = encode_reply(7, Command.VERSION, Version(0, 1))
    for byte in reply:
        await pair.server.send(bytes([byte]))
        await trio.testing.wait_all_tasks_blocked()
    assert (await pair.client.message()).header.command == Command.VERSION
