"""Acts as the recorded client, and watches the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from protocol import HEADER, GetRegionInfo, Message, Version
from protocol.trace import Access, Interrupt
from server.fds import ReceivedFds
from server.first_error import first_error
from server.trace.pairing import DecodedMessage, Pairing, decode
from server.trace.reader import TracedLook, TracedMalformed, TracedMessage
from server.trace.replay.commands import Commands, Planned
from server.trace.replay.comparison import Comparison
from server.trace.replay.intervals import Interval, RecordedSession
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.memory_access import MemoryAccess
from server.trace.replay.pace import Pace
from server.trace.replay.report import Report
from server.trace.replay.server_areas import AreasRefused, ServerAreas
from server.trace.replay.server_connection import ServerConnection, ServerGone
from server.trace.text.names import Names
from server.trace.text.value_text import plural

MAX_PATIENCE = 10
"""How many times the timeout one thing may take of a server that asks for memory meanwhile."""


class Stuck(Exception):  # noqa: N818 - an event of the replay
    """What was recorded next does not come."""


class CannotGoOn(Exception):  # noqa: N818 - an event of the replay
    """What was recorded next cannot be replayed; the text says why."""


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
"""Awaited after each interval, or each look at mappable areas, with its time in ns since 1970."""


class Player:
    """Replays one session to one server."""

    def __init__(
        self,
        session: RecordedSession,
        server: ServerConnection,
        memory: ReplayMemory,
        areas: ServerAreas,
        access: MemoryAccess,
        comparison: Comparison,
        options: ReplayOptions,
        report: Report,
    ) -> None:
        self._session = session
        self._server = server
        self._memory = memory
        self._areas = areas
        self._access = access
        self._comparison = comparison
        self._options = options
        self._report = report
        self._commands = Commands(memory, server)
        self._pairing = Pairing()
        self._pace = Pace(original=options.original_timing)
        self._expected: Counter[tuple[int, int]] = Counter()
        """How often each interrupt has been raised in the recording so far."""
        self.settled: Callable[[], Awaitable[None]] | None = None
        """Awaits that the server has nothing more to do, for those that can tell."""
        self.when_done: WhenDone = _nothing
        self.when_looked: WhenDone = _nothing

    async def play(self) -> None:
        """Replay to the end, or to where the server cannot be followed. Raises TraceError."""
        try:
            for interval in self._session.intervals():
                await self._pace.keep(interval.time)
                await self._replay(interval)
                await self.when_done(interval.time, self._meanwhile)
            self._check_rest()
        except ServerGone as gone:
            self._report.diverged(str(gone))
            self._report.stop("the connection has ended")
        except Stuck as stuck:
            self._report.diverged(str(stuck))
            self._report.stop("the server does not come to where the recording goes on")
        except CannotGoOn as reason:
            self._report.stop(str(reason))
        self._report.cut_short = self._session.reader.cut_short

    async def _replay(self, interval: Interval) -> None:
        planned = self._commands.plan(interval)
        self._expect_replies(interval)
        self._access.begin(interval)
        await self._send(planned)
        for item in interval.items:
            if isinstance(item, TracedMessage):
                await self._meet(item)
            elif isinstance(item, Interrupt):
                await self._interrupt(item)
            elif isinstance(item, TracedLook):
                await self._look(item)
            elif isinstance(item, TracedMalformed):
                await self._break_off(item)
            else:
                await self._access.meet(item, self._until)
        await self._access.finish(self._until)
        self._memory.settle()
        if self.settled is not None and any(isinstance(item, Access) for item in interval.items):
            # What a device makes of the last bytes that it got, it may do a moment later, without a word.
            with trio.move_on_after(self._options.timeout):
                await self.settled()

    def _expect_replies(self, interval: Interval) -> None:
        """There are replies to what is no command: what breaks the framing is answered."""
        sent = {command.header.message_id for command in interval.commands}
        for item in interval.items:
            if isinstance(item, TracedMessage) and item.header.is_reply and not item.inbound:
                message_id = item.header.message_id
                if message_id not in sent and not self._server.awaits(message_id):
                    self._server.ask(message_id)

    async def _look(self, item: TracedLook) -> None:
        """Write to mappable areas what the client had written."""
        await self._pace.keep(item.time)
        for change in item.look.changes:
            self._areas.put(change)
        if item.look.whole:
            await self.when_looked(item.time, self._meanwhile)

    async def _break_off(self, item: TracedMalformed) -> None:
        """Send what is no message, as far as it was recorded. Raises CannotGoOn, ServerGone."""
        if not item.inbound:
            raise CannotGoOn(f"the recorded server broke the framing: {item.malformed.reason}")
        if item.facts.fds or item.facts.twin:
            what = "on the twin socket" if item.facts.twin else "with file descriptors"
            raise CannotGoOn(f"the client broke the framing {what}, which is not done again")
        self._report.sent += 1
        await self._server.send(item.malformed.data)

    async def _send(self, planned: list[Planned]) -> None:
        """Send at once what was sent at once; what carries fds goes by itself."""
        data = bytearray()

        async def send_data() -> None:
            if data:
                await self._server.send(bytes(data))
                data.clear()

        for command in planned:
            message = command.message
            if self._pace.waits(message.time):
                await send_data()
            await self._pace.keep(message.time)
            self._report.reached(message)
            self._report.sent += 1
            if not message.header.no_reply:
                self._remember(command.decoded)
                self._server.ask(message.header.message_id)
            whole = HEADER.pack(*message.header) + message.payload
            with self._commands.fds(command, shares_memory=self._access.shares_memory) as fds:
                if fds:
                    await send_data()
                    await self._server.send(whole, fds)
                else:
                    data += whole
        await send_data()

    def _remember(self, request: DecodedMessage) -> None:
        for _ in self._pairing.add(request):
            pass  # the oldest of too many is forgotten

    async def _meet(self, message: TracedMessage) -> None:
        """A message that is not a command of the client: the server's turn, or the client's reply to it."""
        header = message.header
        request = self._pairing.find(message) if header.is_reply else None
        self._report.reached(message, request)
        if message.inbound:
            await self._access.reply(message)
        elif header.is_reply:
            await self._until(lambda: self._server.has_reply(header.message_id), "the reply did not come")
            self._take_reply(request, message, self._server.take_reply(header.message_id))
        else:
            self._remember(decode(message))
            self._report.requests += 1
            await self._access.request(message, self._until)

    def _take_reply(self, request: DecodedMessage | None, recorded: TracedMessage, reply: Message) -> None:
        with ReceivedFds(reply.fds):
            self._report.replies += 1
            difference = self._comparison.difference(
                None if request is None else request.message, recorded, reply
            )
            if difference is not None:
                self._report.diverged(difference, recorded)
            self._commands.answered(request, refused=recorded.header.is_error)
            asked = None if request is None else request.value
            if reply.header.is_error:
                return
            if isinstance(asked, Version):
                self._server.agreed(asked, reply)
            elif isinstance(asked, GetRegionInfo):
                self._offered(reply, recorded)

    def _offered(self, reply: Message, recorded: TracedMessage) -> None:
        """The server has described a region."""
        try:
            self._areas.offered(reply.payload, reply.fds)
        except AreasRefused as refused:
            self._report.diverged(str(refused), recorded)

    async def _interrupt(self, event: Interrupt) -> None:
        vector = (event.index, event.vector)
        self._expected[vector] += 1
        expected = self._expected[vector]
        self._report.interrupts += 1

        def raised() -> bool:
            return self._server.interrupts[vector] >= expected

        await self._until(raised, f"interrupt {Names.irq(event.index)} {event.vector} was not raised")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something of the server, and see to what it asks for meanwhile. Raises Stuck, ServerGone."""
        timeout = self._options.timeout
        deadline = trio.current_time() + timeout
        last = deadline + (MAX_PATIENCE - 1) * timeout
        while not condition():
            served = self._access.served
            patience = await self._access.serve()
            if condition():
                return
            if self._access.served != served:
                deadline = min(trio.current_time() + timeout, last)
            left = deadline - trio.current_time()
            if left <= 0:
                raise Stuck(f"{what} within {timeout:g} s")
            if not await self._server.wait(min(patience, left)):
                self._access.lost_patience()

    async def _meanwhile(self, call: Callable[[], Awaitable[None]]) -> None:
        finished = False

        async def run() -> None:
            nonlocal finished
            await call()
            finished = True
            self._server.nudge()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await self._until(lambda: finished, "what was to be done meanwhile was not done")
        except* Exception as errors:
            raise first_error(errors) from None

    def _check_rest(self) -> None:
        """Nothing may have come that was not recorded."""
        self._server.collect()
        for (index, vector), count in self._server.interrupts.items():
            more = count - self._expected[index, vector]
            if more > 0 and self._session.info.interrupts:
                times = plural(more, "time")
                self._report.diverged(
                    f"interrupt {Names.irq(index)} {vector} was raised {times} more than in the recording"
                )
        for message_id in self._server.untaken():
            self._report.diverged(f"there is a reply to message id {message_id}, and there was none")
        for message_id, count in self._server.unasked.items():
            self._report.diverged(f"{plural(count, 'message')} with id {message_id} reply to nothing")
