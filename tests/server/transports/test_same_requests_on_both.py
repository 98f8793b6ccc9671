"""The same random requests to both transports: replies and device must be the same, but for what is listed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from structlog.typing import EventDict

from devices.contract import GuestMemoryError, GuestRange, PinnedPages, Prot
from protocol import (
    Command,
    DmaRead,
    DmaReadReply,
    DmaWrite,
    DmaWriteReply,
    Message,
    encode_reply,
)
from server.fds import ReceivedFds
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS, running_server, with_transport
from tests.server.transports.random_requests import DOORBELLS, PAGES, RandomRequests, Request
from tests.server.transports.raw import RawClient, greeted_client

SEEDS = range(40)
STUCK_SECONDS = 60
FILE_BYTES = PAGES * PAGE


@dataclass(frozen=True)
class Reply:
    """What a client sees of a reply."""

    command: int
    flags: int
    error: int
    payload: bytes
    fds: int


@dataclass(frozen=True)
class Difference:
    """A deliberate one: why it is there, and which replies it explains."""

    reason: str
    explains: Callable[[Request, Reply, Reply], bool]


def _u32(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "little")


def _same_error_with_payload(_request: Request, native: Reply, library: Reply) -> bool:
    headers = [(reply.command, reply.flags, reply.error, reply.fds) for reply in (native, library)]
    return native.error != 0 and headers[0] == headers[1] and native.payload == b"" != library.payload


DIFFERENCES = {
    "payload of errors": Difference(
        "the library sends what it had begun of the reply to a region access", _same_error_with_payload
    ),
}


class Bench:
    """A device that uses guest memory, its server's client, and the client's memory and eventfds."""

    def __init__(self, client: RawClient, device: RegisterDevice, fds: dict[str, int]) -> None:
        self.client = client
        self.device = device
        self.fds = fds
        self.unshared = bytearray(FILE_BYTES * 2)
        """What the client gives of memory that it did not share, by address."""
        self.pins: list[PinnedPages] = []
        read, write, pin = DOORBELLS
        device.on_write[read] = lambda data: device.attached.defer(self._read(data))
        device.on_write[write] = lambda data: device.attached.defer(self._write(data))
        device.on_write[pin] = self._pin

    async def _read(self, data: bytes) -> None:
        try:
            seen = await self.device.attached.memory.read(self._address(data), 64)
        except GuestMemoryError as error:
            seen = os.strerror(error.errno or 0).encode()[:64].ljust(64)
        self.device.data[BAR0][0x100:0x140] = seen

    async def _write(self, data: bytes) -> None:
        try:
            await self.device.attached.memory.write(
                self._address(data), bytes(self.device.data[BAR0][0x80:0xC0])
            )
        except GuestMemoryError as error:
            self.device.data[BAR0][0x140] = error.errno or 0

    def _pin(self, data: bytes) -> None:
        try:
            ranges = [GuestRange(self._address(data), PAGE)]
            self.pins.append(self.device.attached.memory.pin_pages(ranges, Prot.READ, lambda _pages: None))
        except GuestMemoryError as error:
            self.device.data[BAR0][0x141] = error.errno or 0
        if len(self.pins) > 3:
            self.pins.pop(0).release()

    @staticmethod
    def _address(data: bytes) -> int:
        return _u32(data, 0) % PAGES * PAGE

    async def exchange(self, number: int, request: Request) -> Reply | None:
        """Send a request, in pieces where it says so; answer the server's meanwhile."""
        data, fds = request.encode(number), [self.fds[kind] for kind in request.fds]
        if request.cut:
            await self.client.send(data[: request.cut], fds)
            await trio.testing.wait_all_tasks_blocked()
            await self.client.send(data[request.cut :])
        else:
            await self.client.send(data, fds)
        if request.no_reply:
            # or it would be a matter of luck whether the work that it begins runs before the next request
            await trio.testing.wait_all_tasks_blocked()
            return None
        with trio.fail_after(STUCK_SECONDS):
            return await self._reply(number)

    async def _reply(self, number: int) -> Reply:
        while True:
            message = await self.client.message()
            with ReceivedFds(message.fds):
                header = message.header
                if header.is_reply:
                    assert header.message_id == number
                    return Reply(
                        header.command, header.flags, header.error, bytes(message.payload), len(message.fds)
                    )
            await self._answer(message)

    async def _answer(self, message: Message) -> None:
        header = message.header
        if header.command == Command.DMA_READ:
            read = DmaRead.unpack(message.payload)
            part = bytes(self.unshared[read.address : read.address + read.count])
            await self.client.send(
                encode_reply(header.message_id, header.command, DmaReadReply(read.address, part))
            )
        else:
            write = DmaWrite.unpack(message.payload)
            self.unshared[write.address : write.address + len(write.data)] = write.data
            reply = DmaWriteReply(write.address, len(write.data))
            await self.client.send(encode_reply(header.message_id, header.command, reply))

    def state(self) -> dict[str, object]:
        """All that a client, a guest or an operator could find out."""
        session = self.device.attached
        memory = session.memory.stats()  # type: ignore[attr-defined]
        counters = session.counters  # type: ignore[attr-defined]
        return {
            "registers": [bytes(data) for data in self.device.data],
            "resets": self.device.resets,
            "memory": {name: memory[name] for name in ("regions", "mapped_bytes", "files", "pinned_pages")},
            "counters": [
                getattr(counters, name)
                for name in ("region_reads", "region_writes", "dma_maps", "dma_unmaps", "resets", "errors")
            ],
            "shared memory": os.pread(self.fds["memory"], FILE_BYTES, 0),
            "unshared memory": bytes(self.unshared),
            "revoked pins": [pin.revoked for pin in self.pins],
            "interrupts": int.from_bytes(_eventfd_count(self.fds["eventfd"]), "little"),
        }


def _eventfd_count(fd: int) -> bytes:
    try:
        return os.read(fd, 8)
    except BlockingIOError:
        return bytes(8)


@contextmanager
def fds_of_a_client() -> Iterator[dict[str, int]]:
    memory = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, FILE_BYTES)
    reader, pipe = os.pipe()
    fds = {"memory": memory, "eventfd": os.eventfd(0, os.EFD_NONBLOCK), "pipe": pipe}
    with ReceivedFds((memory, reader, pipe, fds["eventfd"])):
        yield fds


async def played(transport: str, requests: Sequence[Request]) -> tuple[list[Reply | None], dict[str, object]]:
    """What a server with ``transport`` replies to ``requests``, and the state that it is in then."""
    device = RegisterDevice()
    device.share_bar3()
    try:
        async with (
            running_server(device, with_transport(transport)) as server,
            greeted_client(server.path) as client,
        ):
            with fds_of_a_client() as fds:
                bench = Bench(client, device, fds)
                replies = [await bench.exchange(*numbered) for numbered in enumerate(requests, 100)]
                for number in range(3):  # what was begun without a reply, and its messages
                    await bench.exchange(
                        number, Request(Command.DEVICE_GET_INFO, (16).to_bytes(16, "little"))
                    )
                    await trio.testing.wait_all_tasks_blocked()
                return replies, bench.state()
    finally:
        device.close()


def named_difference(request: Request, native: Reply, library: Reply) -> str | None:
    return next(
        (name for name, known in DIFFERENCES.items() if known.explains(request, native, library)), None
    )


def test_only_the_listed_differences_are_seen_and_each_of_them_is(log: list[EventDict]) -> None:
    seen: set[str] = set()
    for seed in SEEDS:
        requests = RandomRequests(seed).sequence()
        (native, native_state), (library, library_state) = (
            trio.run(played, transport, requests) for transport in TRANSPORTS
        )
        for number, (request, ours, theirs) in enumerate(zip(requests, native, library, strict=True)):
            if ours == theirs:
                continue
            assert ours is not None
            assert theirs is not None
            name = named_difference(request, ours, theirs)
            if name is None:
                pytest.fail(f"seed {seed}, message {number}: {request}\nnative:  {ours}\nlibrary: {theirs}")
            seen.add(name)
        for what, value in native_state.items():
            assert value == library_state[what], f"seed {seed}: {what}"
    assert seen == set(DIFFERENCES)


def test_the_requests_are_mostly_served(log: list[EventDict]) -> None:
    replies, _ = trio.run(played, "native", [r for seed in range(5) for r in RandomRequests(seed).sequence()])
    served = [reply for reply in replies if reply is not None and reply.error == 0]
    assert len(served) > len(replies) // 3
    assert {reply.command for reply in served} >= {
        Command.DMA_MAP,
        Command.DMA_UNMAP,
        Command.DEVICE_SET_IRQS,
        Command.DEVICE_FEATURE,
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.DEVICE_RESET,
    }
