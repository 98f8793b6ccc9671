"""Sequences of messages that nobody would think of, and bytes that are no messages, with fds of every kind."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.typing import EventDict

from devices.contract import Device
from devices.models import MODELS
from devices.registry import create_device
from protocol import (
    FLAG_NO_REPLY,
    HEADER,
    HEADER_SIZE,
    Capabilities,
    Command,
    Decoder,
    Header,
    TwinSocket,
    Version,
    encode,
    encode_request,
    max_message_size,
)
from server.client import open_client
from server.native.handlers import MAX_DATA_XFER_SIZE
from server.native.serve import ConnectionOptions
from server.native.transport import MAX_FDS
from tests.fds import open_fds
from tests.server.register_device import CONFIG, PAGE, RegisterDevice
from tests.server.running import Server, running_server
from tests.server.transports.raw import RawClient, raw_client

DOORBELL = 0x10
MAIN = Capabilities(max_msg_fds=8, write_multiple=True)
TWIN = Capabilities(max_msg_fds=8, write_multiple=True, twin_socket=TwinSocket(supported=True))

FIELDS = {
    Command.VERSION: "HH",
    Command.DMA_MAP: "aIQQQ",
    Command.DMA_UNMAP: "aIQQ",
    Command.DEVICE_GET_INFO: "aIII",
    Command.DEVICE_GET_REGION_INFO: "aIIIQQ",
    Command.DEVICE_GET_REGION_IO_FDS: "aIII",
    Command.DEVICE_GET_IRQ_INFO: "aIII",
    Command.DEVICE_SET_IRQS: "aIIII",
    Command.REGION_READ: "QII",
    Command.REGION_WRITE: "QIl",
    Command.DMA_READ: "QQ",
    Command.DMA_WRITE: "QQ",
    Command.DEVICE_RESET: "",
    Command.REGION_WRITE_MULTI: "QQIIQQIIQ",
    Command.DEVICE_FEATURE: "aI",
    Command.MIG_DATA_READ: "aI",
    Command.MIG_DATA_WRITE: "aI",
}
"""The fixed part of each request (vfio-user specification); ``a`` is an argsz, ``l`` the length of what follows."""

KINDS = ("memory", "eventfd", "pipe", "socket")

u32 = st.one_of(
    st.integers(0, 9), st.sampled_from([16, 64, PAGE, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
)
u64 = st.one_of(
    st.integers(0, 9),
    st.sampled_from([DOORBELL, PAGE, 2 * PAGE, 4 * PAGE, 2**63, 2**64 - PAGE, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@dataclass(frozen=True)
class Sent:
    """A command whose framing is right, whatever is in it."""

    command: int
    payload: bytes
    fds: tuple[str, ...]
    no_reply: bool


@st.composite
def payloads(draw: st.DrawFn, command: Command) -> bytes:
    fields = FIELDS[command]
    tail = draw(st.one_of(st.just(b""), st.binary(max_size=64)))
    layout = "=" + fields.replace("a", "I").replace("l", "I")
    exact = {"a": struct.calcsize(layout) + len(tail), "l": len(tail)}
    values = []
    for field in fields:
        likely = st.just(exact[field]) if field in exact else st.nothing()
        any_value = u64 if field == "Q" else u32.map(lambda value: value & 0xFFFF) if field == "H" else u32
        values.append(draw(likely | any_value))
    return struct.pack(layout, *values) + tail


@st.composite
def commands(draw: st.DrawFn) -> Sent:
    command = draw(st.sampled_from(sorted(FIELDS)))
    number = draw(st.one_of(st.just(int(command)), st.just(int(command)), st.integers(0, 0xFFFF)))
    payload = draw(st.one_of(payloads(command), payloads(command), st.binary(max_size=100)))
    fds = draw(st.one_of(st.just([]), st.lists(st.sampled_from(KINDS), max_size=3)))
    return Sent(number, payload, tuple(fds), draw(st.booleans()))


endings = st.one_of(
    st.just(b""),
    st.binary(max_size=100),
    commands().map(lambda sent: encode(9, sent.command, 0, sent.payload)[:-1]),
    st.builds(HEADER.pack, st.just(9), u32.map(lambda v: v & 0xFFFF), u32, u32, u32),
)
"""What may come last, because it may end the connection."""

ready_to_run = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _quiet(log: list[EventDict]) -> None:
    """A failure shows the example, and not the log of all of them."""


@contextmanager
def fds_of_every_kind() -> Iterator[dict[str, int]]:
    memory = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 4 * PAGE)
    reader, pipe = os.pipe()
    ours, theirs = socket.socketpair()
    fds = {"memory": memory, "eventfd": os.eventfd(0), "pipe": pipe, "socket": theirs.fileno()}
    with ours, theirs:
        try:
            yield fds
        finally:
            for fd in (memory, reader, pipe, fds["eventfd"]):
                os.close(fd)


def device_of(model: str) -> Device:
    """A device; writes to the doorbell of the one with registers start work that needs the client's memory."""
    if model != "registers":
        return create_device(MODELS, model)
    device = RegisterDevice()

    async def copy() -> None:
        memory = device.attached.memory
        await memory.write(PAGE, await memory.read(0, 64))

    device.on_write[DOORBELL] = lambda _: device.attached.defer(copy())
    return device


@asynccontextmanager
async def server_that_survives(model: str, options: ConnectionOptions) -> AsyncIterator[Server]:
    """A server that afterwards serves a new client, and has every fd back."""
    async with running_server(device_of(model), options) as server:
        idle = open_fds()
        with trio.fail_after(60):
            yield server
            async with open_client(server.path) as client:
                assert (await client.get_info()).num_regions == 9
                assert len(await client.region_read(CONFIG, 0, 4)) == 4
            while server.engine.session is not None or open_fds() > idle:
                await trio.lowlevel.checkpoint()


async def read_to_the_end(client: RawClient) -> bytes:
    """All that the server says; the kernel closes the fds, since nothing asks for them."""
    said = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := await client.sock.recv(1 << 16):
            said += part
    return bytes(said)


async def converse(server: Server, parts: Sequence[tuple[bytes, list[int]]]) -> bytes:
    """Send ``parts`` one by one, stop sending, and return all that the server said."""
    said: list[bytes] = []
    async with raw_client(server.path) as client, trio.open_nursery() as nursery:

        async def listen() -> None:
            said.append(await read_to_the_end(client))

        nursery.start_soon(listen)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for data, fds in parts:
                await client.send(data, fds)
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_WR)
    return said[0]


def replies_in(said: bytes) -> list[int]:
    """The message ids of the replies, VERSION's left out."""
    decoder = Decoder(max_message_size(MAX_DATA_XFER_SIZE), 0)
    decoder.feed(said)
    return [message.header.message_id for message in decoder if message.header.is_reply][1:]


@pytest.mark.parametrize("capabilities", [MAIN, TWIN], ids=["main", "twin"])
@pytest.mark.parametrize("model", ["registers", "virtio-gpu"])
def test_whatever_commands_say_each_is_answered_once_and_in_order(
    model: str, capabilities: Capabilities, options: ConnectionOptions
) -> None:
    async def run(sequence: list[Sent], ending: bytes) -> None:
        parts: list[tuple[bytes, list[int]]] = [(encode_request(0, Version(0, 1, capabilities)), [])]
        with fds_of_every_kind() as fds:
            for number, sent in enumerate(sequence, 100):
                flags = FLAG_NO_REPLY if sent.no_reply else 0
                data = encode(number, sent.command, flags, sent.payload)
                parts.append((data, [fds[kind] for kind in sent.fds]))
            if ending:
                parts.append((ending, []))
            async with server_that_survives(model, options) as server:
                replies = replies_in(await converse(server, parts))
        expected = [number for number, sent in enumerate(sequence, 100) if not sent.no_reply]
        assert replies[: len(expected)] == expected

    @ready_to_run
    @given(st.lists(commands(), max_size=20), endings)
    def fuzz(sequence: list[Sent], ending: bytes) -> None:
        before = open_fds()
        trio.run(run, sequence, ending)
        assert open_fds() == before

    fuzz()


@pytest.mark.parametrize("greeted", [True, False])
def test_bytes_that_are_no_messages_end_nothing_but_their_connection(
    greeted: bool, options: ConnectionOptions
) -> None:
    async def run(chunks: list[tuple[bytes, list[str]]]) -> None:
        parts: list[tuple[bytes, list[int]]] = []
        if greeted:
            parts.append((encode_request(0, Version(0, 1, TWIN)), []))
        with fds_of_every_kind() as fds:
            parts += [(data, [fds[kind] for kind in kinds]) for data, kinds in chunks]
            async with server_that_survives("registers", options) as server:
                said = await converse(server, parts)
        # Too many fds come to light while they are read, perhaps together with VERSION.
        if greeted and all(len(kinds) <= MAX_FDS for _, kinds in chunks):
            assert Header.unpack(said[:HEADER_SIZE]).command == Command.VERSION

    @ready_to_run
    @given(
        st.lists(
            st.tuples(
                st.binary(min_size=1, max_size=60), st.lists(st.sampled_from(KINDS), max_size=MAX_FDS + 1)
            ),
            max_size=6,
        )
    )
    def fuzz(chunks: list[tuple[bytes, list[str]]]) -> None:
        before = open_fds()
        trio.run(run, chunks)
        assert open_fds() == before

    fuzz()
