"""What a replay remembers of guest memory that is reached by message goes when the guest takes it away."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from protocol import (
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaWrite,
    encode_request,
)
from protocol.pcapng import Direction
from protocol.trace import Access
from server.trace.fd_facts import FdFacts
from server.trace.reader import TracedMessage, TraceReader
from server.trace.replay import message_access
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.message_access import GRACE_SECONDS, MessageAccess
from server.trace.replay.report import Report
from tests.server.register_device import PAGE
from tests.server.trace.replay.sessions import BASE
from tests.server.trace.replay.test_server_connection import connection
from tests.server.trace.replay.traces import made_up

SPARE = 200_000
"""Bytes; a page number in a set takes 60."""

Ask = Callable[[DmaRead | DmaWrite], Awaitable[float]]


async def now(condition: Callable[[], bool], what: str) -> None:
    assert condition(), what


@asynccontextmanager
async def access_to(memory: ReplayMemory) -> AsyncIterator[tuple[MessageAccess, Ask]]:
    """How the server gets at ``memory``; and what has it ask, and returns how long its request may wait."""
    with TraceReader(Path("/dev/null")) as reader:
        async with connection() as (client, server):
            access = MessageAccess(reader, memory, client, Report())

            async def ask(request: DmaRead | DmaWrite) -> float:
                await server.send_all(encode_request(1, request))
                while client.next_request() is None:
                    await client.wait(5)
                return await access.serve()

            yield access, ask


def looked(address: int, length: int) -> Access:
    return Access(False, address, length, bytes(length), in_place=True)


def region(address: int, pages: int) -> DmaMap:
    return DmaMap(address, pages * PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE)


async def test_memory_does_not_grow_with_what_was_looked_at_in_place_and_unmapped() -> None:
    pages, looks = 16, 8
    size = 2 * pages * looks * PAGE
    with closing(ReplayMemory()) as memory:
        async with access_to(memory) as (access, _):
            tracemalloc.start()
            try:
                for number in range(100):
                    start = BASE + number * size
                    memory.map(
                        DmaMap(start, size, DmaMapFlags.READ), FdFacts("memfd", 1, 7, size), 2 * number
                    )
                    for look in range(looks):
                        await access.meet(looked(start + 2 * look * pages * PAGE, pages * PAGE), now)
                    memory.unmap(DmaUnmap(start, size), 2 * number + 1)
                    memory.settle()
                left, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert left < SPARE


async def test_memory_does_not_grow_with_how_much_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_access, "MAX_IN_PLACE", 100)
    with closing(ReplayMemory()) as memory:
        async with access_to(memory) as (access, _):
            tracemalloc.start()
            try:
                await access.meet(looked(BASE, 1 << 28), now)
                for number in range(5000):
                    await access.meet(looked(BASE + (1 << 29) + 2 * number * PAGE, 1), now)
                left, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert left < SPARE


async def test_what_was_looked_at_is_read_at_once_until_it_is_unmapped_or_mapped_anew() -> None:
    with closing(ReplayMemory()) as memory:
        async with access_to(memory) as (access, ask):
            memory.map(region(BASE, 4), None, 1)
            await access.meet(looked(BASE + 100, 2 * PAGE), now)
            assert await ask(DmaRead(BASE, 3 * PAGE)) > GRACE_SECONDS
            memory.map(region(BASE + PAGE, 1), None, 2)
            assert await ask(DmaRead(BASE, PAGE)) > GRACE_SECONDS
            memory.unmap(DmaUnmap(BASE + 2 * PAGE, 2 * PAGE), 3)
            assert await ask(DmaRead(BASE, PAGE)) > GRACE_SECONDS
            assert await ask(DmaRead(BASE + PAGE, 8)) == GRACE_SECONDS


async def test_an_unmapped_page_is_not_taken_for_one_that_was_looked_at() -> None:
    with closing(ReplayMemory()) as memory:
        async with access_to(memory) as (access, ask):
            memory.map(region(BASE, 1), None, 1)
            await access.meet(looked(BASE, PAGE), now)
            memory.unmap(DmaUnmap(BASE, PAGE), 2)
            memory.map(region(BASE, 1), None, 3)
            assert await ask(DmaRead(BASE, 8)) == GRACE_SECONDS


async def test_what_the_server_asks_behind_a_write_waits_for_what_was_recorded_next() -> None:
    with closing(ReplayMemory()) as memory, TraceReader(Path("/dev/null")) as reader:
        async with connection() as (client, server):
            access = MessageAccess(reader, memory, client, Report())

            async def until(condition: Callable[[], bool], _what: str) -> None:
                while not condition():
                    await access.serve()

            memory.map(region(BASE, 2), None, 1)
            await access.meet(looked(BASE, PAGE), now)
            write, read = DmaWrite(BASE + PAGE, b"done"), DmaRead(BASE, 4)
            await server.send_all(encode_request(1, write) + encode_request(2, read))
            while client.next_request() is None:
                await client.wait(5)
            await access.meet(Access(True, BASE + PAGE, 4, b"done"), until)
            assert access.served == 1
            await access.meet(Access(False, BASE, 4, b"next", in_place=True), until)
            await access.serve()
            assert access.served == 2
            answers = await server.receive_some()
            assert answers.endswith(DmaReadReply(BASE, b"next").pack())


async def test_a_request_that_waits_for_its_reply_keeps_no_payload(tmp_path: Path) -> None:
    size = 1 << 20
    with made_up(tmp_path / "trace") as trace:
        for message_id in range(16):
            data = encode_request(message_id, DmaWrite(BASE, b""))
            trace.recorder.message(Direction.OUTBOUND, data)
    with closing(ReplayMemory()) as memory, TraceReader(tmp_path / "trace") as reader:
        recorded = [one for one in reader if isinstance(one, TracedMessage) and not one.inbound][1:]
        async with connection() as (client, server):
            access = MessageAccess(reader, memory, client, Report())
            tracemalloc.start()
            try:
                for message in recorded:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(server.send_all, encode_request(1, DmaWrite(BASE, bytes(size))))
                        while client.next_request() is None:
                            await client.wait(5)
                        await access.request(message, now)
                left, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert len(recorded) == 16
    assert left < 4 * size
