"""Acts as the recorded client, and watches the server."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from protocol import (
    HEADER,
    Command,
    DmaMap,
    DmaUnmap,
    IrqAction,
    IrqData,
    Message,
    ProtocolError,
    SetIrqs,
    Version,
    decode_request,
)
from protocol.codec import Request
from protocol.trace import Interrupt
from server.fds import ReceivedFds
from server.trace.fd_facts import FdFacts
from server.trace.reader import TracedMessage
from server.trace.replay.comparison import Comparison
from server.trace.replay.intervals import Interval, RecordedSession
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.memory_access import MemoryAccess
from server.trace.replay.report import Report
from server.trace.replay.server_connection import ServerConnection, ServerGone

NS_PER_SECOND = 10**9


class Stuck(Exception):  # noqa: N818 - an event of the replay
    """What was recorded next does not come."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay. ``timeout``: seconds to wait for the server."""

    timeout: float = 5.0
    original_timing: bool = False


Meanwhile = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Awaits a call, and sees to what the server asks for until it returns."""


async def _nothing(_time: int, _meanwhile: Meanwhile) -> None:
    """Nobody watches."""


WhenDone = Callable[[int, Meanwhile], Awaitable[None]]
"""Awaited after each interval, with its time in ns since 1970."""


class Player:
    """Replays one session to one server."""

    def __init__(
        self,
        session: RecordedSession,
        server: ServerConnection,
        memory: ReplayMemory,
        access: MemoryAccess,
        comparison: Comparison,
        options: ReplayOptions,
        report: Report,
    ) -> None:
        self._session = session
        self._server = server
        self._memory = memory
        self._access = access
        self._comparison = comparison
        self._options = options
        self._report = report
        self._requests: dict[int, TracedMessage] = {}
        """Commands that were sent and not answered, by message id."""
        self._expected: Counter[tuple[int, int]] = Counter()
        """How often each interrupt has been raised in the recording so far."""
        self.when_done: WhenDone = _nothing

    async def play(self) -> None:
        """Replay to the end, or to where the server cannot be followed. Raises TraceError."""
        began: tuple[float, int] | None = None
        try:
            for interval in self._session.intervals():
                if self._options.original_timing:
                    began = began or (trio.current_time(), interval.time)
                    await trio.sleep_until(began[0] + (interval.time - began[1]) / NS_PER_SECOND)
                await self._replay(interval)
                await self.when_done(interval.time, self._meanwhile)
            self._check_rest()
        except ServerGone as gone:
            self._report.diverged(str(gone))
            self._report.stop("the connection has ended")
        except Stuck as stuck:
            self._report.diverged(str(stuck))
            self._report.stop("the server does not come to where the recording goes on")
        self._report.cut_short = self._session.reader.cut_short

    async def _replay(self, interval: Interval) -> None:
        refused = {
            item.header.message_id
            for item in interval.items
            if isinstance(item, TracedMessage) and item.header.is_error and not item.inbound
        }
        prepared = [
            (message, self._prepare(message, message.header.message_id in refused))
            for message in interval.commands
        ]
        self._access.begin(interval)
        await self._send(prepared)
        for item in interval.items:
            if isinstance(item, TracedMessage):
                await self._meet(item)
            elif isinstance(item, Interrupt):
                await self._interrupt(item)
            else:
                await self._access.meet(item, self._until)
        await self._access.finish(self._until)

    async def _send(self, prepared: list[tuple[TracedMessage, list[int]]]) -> None:
        """Send at once what was sent at once; what carries fds goes by itself."""
        data = bytearray()
        for message, fds in prepared:
            self._report.reached(message)
            self._report.sent += 1
            whole = HEADER.pack(*message.header) + message.payload
            if not fds:
                data += whole
                continue
            if data:
                await self._server.send(bytes(data))
                data.clear()
            await self._server.send(whole, fds)
        if data:
            await self._server.send(bytes(data))

    def _prepare(self, message: TracedMessage, refused: bool) -> list[int]:
        """What a command of the client means for the replay; returns the fds that go with it, which stay ours."""
        header = message.header
        if not header.no_reply:
            self._requests[header.message_id] = message
        try:
            request = decode_request(header, message.payload)
        except ProtocolError:
            return []
        files = [facts for facts in message.facts.fds if facts.kind != "eventfd"]
        if isinstance(request, DmaMap):
            return self._map(request, files[0] if files else None, refused)
        if isinstance(request, SetIrqs) and not refused:
            return self._set_irqs(request, len(message.facts.fds))
        return []

    def _map(self, request: DmaMap, facts: FdFacts | None, refused: bool) -> list[int]:
        if refused:
            return []
        fd = self._memory.map(request, facts)
        return [fd] if facts is not None and self._access.shares_memory else []

    def _set_irqs(self, request: SetIrqs, fds: int) -> list[int]:
        trigger = request.action is IrqAction.TRIGGER
        if request.data is not IrqData.EVENTFD:
            if request.disables:
                for vector in self._server.watched(request.index):
                    self._server.watch(request.index, vector, None)
            return []
        made: list[int] = []
        for vector in range(request.start, request.start + request.count):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if len(made) < fds else None
            if trigger:
                self._server.watch(request.index, vector, fd)
            if fd is not None:
                made.append(fd)
        return made

    async def _meet(self, message: TracedMessage) -> None:
        """A message that is not a command of the client: the server's turn, or the client's reply to it."""
        self._report.reached(message)
        header = message.header
        if message.inbound:
            await self._access.reply(message)
        elif header.is_reply:
            await self._until(lambda: header.message_id in self._server.replies, "the reply did not come")
            reply = self._server.replies.pop(header.message_id)
            self._take_reply(message, reply)
        else:
            self._report.requests += 1
            await self._access.request(message, self._until)

    def _take_reply(self, recorded: TracedMessage, reply: Message) -> None:
        request = self._requests.pop(recorded.header.message_id, None)
        with ReceivedFds(reply.fds):
            self._report.replies += 1
            difference = self._comparison.difference(request, recorded, reply)
            if difference is not None:
                self._report.diverged(difference, recorded)
            asked = _decoded(request)
            if isinstance(asked, Version) and not reply.header.is_error:
                self._server.agreed(asked, reply)
            elif isinstance(asked, DmaUnmap) and not recorded.header.is_error:
                self._memory.unmap(asked)

    async def _interrupt(self, event: Interrupt) -> None:
        vector = (event.index, event.vector)
        self._expected[vector] += 1
        expected = self._expected[vector]
        self._report.interrupts += 1

        def raised() -> bool:
            return self._server.interrupts[vector] >= expected

        await self._until(raised, f"interrupt {event.vector} of IRQ index {event.index} was not raised")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something of the server, and see to what it asks for meanwhile. Raises Stuck, ServerGone."""
        deadline = trio.current_time() + self._options.timeout
        while not condition():
            served = self._access.served
            patience = await self._access.serve()
            if condition():
                return
            if self._access.served != served:
                deadline = trio.current_time() + self._options.timeout
            left = deadline - trio.current_time()
            if left <= 0:
                raise Stuck(f"{what} within {self._options.timeout:g} s")
            if not await self._server.wait(min(patience, left)):
                self._access.lost_patience()

    async def _meanwhile(self, call: Callable[[], Awaitable[None]]) -> None:
        finished = False

        async def run() -> None:
            nonlocal finished
            await call()
            finished = True
            self._server.nudge()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await self._until(lambda: finished, "what was to be done meanwhile was not done")

    def _check_rest(self) -> None:
        """Nothing may have come that was not recorded."""
        self._server.collect()
        for (index, vector), count in self._server.interrupts.items():
            more = count - self._expected[index, vector]
            if more > 0 and self._session.info.interrupts:
                self._report.diverged(
                    f"interrupt {vector} of IRQ index {index} was raised {more} times more than in the recording"
                )
        for message_id in self._server.replies:
            self._report.diverged(f"there is a reply to message id {message_id}, and there was none")


def _decoded(message: TracedMessage | None) -> Request | None:
    """The request, where there is one and it makes sense."""
    if message is None or message.header.command not in (Command.VERSION, Command.DMA_UNMAP):
        return None
    try:
        return decode_request(message.header, message.payload)
    except ProtocolError:
        return None
