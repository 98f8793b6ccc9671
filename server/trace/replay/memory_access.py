"""How the server gets at the guest's memory in a replay, and how what it does there is compared.

With :class:`MessageAccess` it has none, and asks for every access. Each read is answered with what was found at that
point of the recording, so a replay is exact, although the guest changed memory while the device looked at it.

With :class:`SharedAccess` the server has the files. Whatever the device is to find up to the next message of the client
is put there before the message that makes it look, and what the device wrote has to be there before the next is sent.
That is not exact where the guest changed the same place twice in between (a ring, to which it added without a kick), or
where the device was not yet done when the client sent something else.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

from protocol import DmaRead, DmaReadReply, DmaWrite, DmaWriteReply, Message, ProtocolError, decode_request
from protocol.trace import Access
from server.client.channel import Channel
from server.trace.reader import TracedMessage, TraceReader
from server.trace.replay.intervals import Interval
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.report import Report
from server.trace.replay.server_connection import MAX_DATA, ServerConnection
from server.trace.replay.sparse_bytes import SparseBytes

GRACE_SECONDS = 0.05
"""How long a request waits for the recording to come to it, before it is answered as one that was not recorded."""
FOREVER = 3600.0
POLL_SECONDS = 0.0005
PAGE_SHIFT = 12

Until = Callable[[Callable[[], bool], str], Awaitable[None]]
"""Wait until a condition holds; the text says what did not happen where it does not."""


class MemoryAccess(Protocol):
    """What the player leaves to whoever knows how memory is reached."""

    shares_memory: bool
    served: int
    """Requests of the server that were answered."""

    def begin(self, interval: Interval) -> None:
        """Commands are about to be sent."""

    async def meet(self, access: Access, until: Until) -> None:
        """An access is next in the recording."""

    async def finish(self, until: Until) -> None:
        """The interval is over."""

    async def request(self, recorded: TracedMessage, until: Until) -> None:
        """A request of the server is next in the recording."""

    async def reply(self, recorded: TracedMessage) -> None:
        """The client's reply to one is."""

    async def serve(self) -> float:
        """See to what the server asks for; returns how many seconds there is patience with what is left."""

    def lost_patience(self) -> None:
        """That time has passed, and nothing has come."""


class RecordedRequests:
    """Requests of the server that were recorded as messages, and what was answered."""

    def __init__(self, server: ServerConnection, report: Report) -> None:
        self._server = server
        self._report = report
        self.served = 0
        self._open: dict[int, tuple[Channel, Message]] = {}
        """What the server asked now, by the message id of what it asked then."""

    async def request(self, recorded: TracedMessage, until: Until) -> None:
        """The server has to ask the same. Raises what ``until`` raises."""
        await until(lambda: bool(self._server.requests), "the server did not ask for guest memory")
        channel, message = self._server.requests.popleft()
        before, after = recorded.header, message.header
        if before.command != after.command or bytes(recorded.payload) != bytes(message.payload):
            self._report.diverged("the server asks for something else of guest memory", recorded)
        self._open[before.message_id] = (channel, message)

    async def reply(self, recorded: TracedMessage) -> None:
        """Answer as the client did. Raises ServerGone."""
        header = recorded.header
        channel, message = self._open.pop(header.message_id, (None, None))
        if channel is None or message is None:
            return
        reply = header.error or errno.EIO if header.is_error else bytes(recorded.payload)
        await self._server.answer(channel, message, reply)


class SharedAccess(RecordedRequests):
    """The server has the memory's files."""

    shares_memory = True

    def __init__(
        self, reader: TraceReader, memory: ReplayMemory, server: ServerConnection, report: Report
    ) -> None:
        super().__init__(server, report)
        self._reader = reader
        self._memory = memory
        self._written = SparseBytes()

    def begin(self, interval: Interval) -> None:
        """Put there what the device is to find. Raises TraceError."""
        self._written = SparseBytes()
        for item in interval.items:
            if not isinstance(item, Access):
                continue
            data = self._reader.data(item)
            if item.write:
                self._report.writes += 1
                self._written.put(item.address, data)
            else:
                self._report.reads += 1
                self._fill(item, data)

    def _fill(self, access: Access, data: bytes) -> None:
        if self._written.differs(access.address, data):
            self._written.drop(access.address, len(data))  # the guest wrote over it: no telling when
        for address, part in self._written.missing(access.address, data):
            self._memory.put(address, part)

    async def meet(self, access: Access, until: Until) -> None:
        """Seen to before."""

    async def finish(self, until: Until) -> None:
        """What the device wrote has to be there. Raises what ``until`` raises."""
        for address, data in self._written.runs():
            try:
                while self._memory.get(address, len(data)) != data:
                    await self._wait_for(address, data, until)
            except OSError:
                continue  # unmapped since

    async def _wait_for(self, address: int, data: bytes, until: Until) -> None:
        def there() -> bool:
            return self._memory.get(address, len(data)) == data

        await until(there, f"the server did not write {_shown(data)} to guest address {address:#x}")

    async def serve(self) -> float:
        """Nothing to serve, but memory changes without a word."""
        return POLL_SECONDS

    def lost_patience(self) -> None:
        """Look again."""


class MessageAccess(RecordedRequests):
    """The server asks for every access."""

    shares_memory = False

    def __init__(
        self, reader: TraceReader, memory: ReplayMemory, server: ServerConnection, report: Report
    ) -> None:
        super().__init__(server, report)
        self._reader = reader
        self._memory = memory
        self._unread: list[tuple[int, int]] = []
        """Start and end of what the device is to read, and has not."""
        self._in_place: set[int] = set()
        """Pages that the device has looked at in place: it may read any part of them at any time."""
        self._impatient = False

    def begin(self, interval: Interval) -> None:
        """Nothing is known before it happens."""

    async def meet(self, access: Access, until: Until) -> None:
        """A read: there is something to find from now on. A write: the server has to do it. Raises TraceError."""
        data = self._reader.data(access)
        if access.write:
            self._report.writes += 1
            await self._expect(access.address, data, until)
            return
        self._report.reads += 1
        start, end = access.address, access.address + len(data)
        if access.in_place:
            self._in_place.update(range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1))
        else:
            if self._is_unread(start, end) and self._holds_other(start, data):
                await self._all_read(until)
            self._unread.append((start, end))
        self._memory.put(start, data)

    async def finish(self, until: Until) -> None:
        """What the device read then, it has to have read by now."""
        if self._unread:
            await self._all_read(until)

    async def _all_read(self, until: Until) -> None:
        await until(
            lambda: not self._unread, f"the server did not read guest memory at {self._unread[0][0]:#x}"
        )

    async def request(self, recorded: TracedMessage, until: Until) -> None:
        """As the base class; what the server read by itself comes first."""
        await self.finish(until)
        await super().request(recorded, until)

    async def serve(self) -> float:
        """Answer the reads that the recording has come to."""
        requests = self._server.requests
        while requests:
            channel, message = requests[0]
            request = _decoded(message)
            expected = isinstance(request, DmaRead) and self._may_read(request)
            if not expected and not self._impatient:
                return GRACE_SECONDS
            self._impatient = False
            requests.popleft()
            self.served += 1
            if isinstance(request, DmaRead):
                await self._read(channel, message, request)
            elif isinstance(request, DmaWrite):
                await self._unexpected(channel, message, request)
            else:
                self._report.diverged(f"the server sent command {message.header.command}")
                await self._server.answer(channel, message, errno.ENOSYS)
        return FOREVER

    def lost_patience(self) -> None:
        """Answer what was not recorded, too."""
        self._impatient = bool(self._server.requests)

    async def _expect(self, address: int, data: bytes, until: Until) -> None:
        """The server has to write ``data`` at ``address``, in as many pieces as it likes."""
        requests = self._server.requests
        what = f"the server did not write {_shown(data)} to guest address {address:#x}"
        while data:
            await until(lambda: bool(requests) and isinstance(_decoded(requests[0][1]), DmaWrite), what)
            channel, message = requests.popleft()
            request = _decoded(message)
            assert isinstance(request, DmaWrite)  # noqa: S101 - what was waited for
            if request.address != address or not data.startswith(request.data):
                if await self._harmless(channel, message, request):
                    continue
                self._report.diverged(_written_otherwise(address, data, request))
                await self._write(channel, message, request)
                return
            await self._write(channel, message, request)
            address += len(request.data)
            data = data[len(request.data) :]

    async def _unexpected(self, channel: Channel, message: Message, request: DmaWrite) -> None:
        if not await self._harmless(channel, message, request):
            self._report.diverged(
                f"the server wrote {_shown(request.data)} to guest address {request.address:#x}, which it did not"
            )
            await self._write(channel, message, request)

    async def _harmless(self, channel: Channel, message: Message, request: DmaWrite) -> bool:
        """Whether a write leaves memory as it is: then nobody can tell, and it is answered."""
        if self._holds_other(request.address, request.data):
            return False
        await self._write(channel, message, request)
        return True

    async def _write(self, channel: Channel, message: Message, request: DmaWrite) -> None:
        self._memory.put(request.address, request.data)
        await self._server.answer(channel, message, DmaWriteReply(request.address, len(request.data)))

    async def _read(self, channel: Channel, message: Message, request: DmaRead) -> None:
        try:
            if request.count > MAX_DATA:
                raise OSError(errno.EINVAL, f"a read of {request.count} bytes")
            data = self._memory.get(request.address, request.count)
        except OSError as error:
            await self._server.answer(channel, message, error.errno or errno.EIO)
            return
        self._mark_read(request.address, request.address + request.count)
        await self._server.answer(channel, message, DmaReadReply(request.address, data))

    def _may_read(self, request: DmaRead) -> bool:
        start, end = request.address, request.address + request.count
        if self._is_unread(start, end):
            return True
        return request.count > 0 and self._in_place.issuperset(
            range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1)
        )

    def _is_unread(self, start: int, end: int) -> bool:
        return any(start < stop and begin < end for begin, stop in self._unread)

    def _mark_read(self, start: int, end: int) -> None:
        """These bytes were read once: of reads of the same bytes, the first is done."""
        todo, unread = [(start, end)], []
        for span in self._unread:
            rest = _without(span, todo)
            todo = [part for one in todo for part in _without(one, [span])]
            unread += rest
        self._unread = unread

    def _holds_other(self, address: int, data: bytes) -> bool:
        try:
            return self._memory.get(address, len(data)) != data
        except OSError:
            return True


def _without(span: tuple[int, int], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of ``span`` that are in none of ``others``."""
    parts = [span]
    for start, end in others:
        cut = [((begin, min(stop, start)), (max(begin, end), stop)) for begin, stop in parts]
        parts = [part for pair in cut for part in pair if part[0] < part[1]]
    return parts


def _decoded(message: Message) -> object:
    """The request, or None where it makes no sense."""
    try:
        return decode_request(message.header, message.payload)
    except ProtocolError:
        return None


def _written_otherwise(address: int, data: bytes, request: DmaWrite) -> str:
    """How a write differs from the ``data`` that was written at ``address`` in the recording."""
    if request.address != address:
        return (
            f"the server wrote {_shown(request.data)} to guest address {request.address:#x}, "
            f"and {_shown(data)} to {address:#x} in the recording"
        )
    pairs = enumerate(zip(request.data, data, strict=False))
    at = next((index for index, (new, old) in pairs if new != old), min(len(request.data), len(data)))
    return (
        f"the server wrote {_shown(request.data[at:]) or 'nothing'} to guest address {address + at:#x}, "
        f"and {_shown(data[at:]) or 'nothing'} in the recording"
    )


def _shown(data: bytes) -> str:
    shown = data[:16].hex(" ")
    return f"{shown} ..." if len(data) > 16 else shown
