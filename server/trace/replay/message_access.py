"""The server asks for every access to the guest's memory.

Each read is answered with what was found at that point of the recording, so a replay is exact, although the guest
changed memory while the device looked at it.
"""

from __future__ import annotations

import errno

from protocol import DmaRead, DmaReadReply, DmaWrite, DmaWriteReply, Message, ProtocolError, decode_request
from protocol.trace import Access
from server.client.channel import Channel
from server.trace.reader import TracedMessage, TraceReader
from server.trace.replay.intervals import Interval
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.memory_access import RecordedRequests, Until, shown
from server.trace.replay.ranges import Ranges
from server.trace.replay.report import Report
from server.trace.replay.server_connection import MAX_DATA, ServerConnection
from server.trace.replay.unread import Unread

GRACE_SECONDS = 0.05
"""How long a request waits for the recording to come to it, before it is answered as one that was not recorded."""
FOREVER = 3600.0
PAGE = 4096
MAX_IN_PLACE = 1 << 16
"""Ranges of pages that were looked at in place: no fewer than a picture of 256 MiB has. Beyond, they are forgotten, and
who reads them waits for GRACE_SECONDS."""


class MessageAccess(RecordedRequests):
    """The server asks for every access."""

    shares_memory = False

    def __init__(
        self, reader: TraceReader, memory: ReplayMemory, server: ServerConnection, report: Report
    ) -> None:
        super().__init__(server, report)
        self._reader = reader
        self._memory = memory
        self._unread = Unread()
        """What the device is to read, and has not."""
        self._expected: _Expected | None = None
        """What the device is to write, and has not."""
        self._in_place = Ranges()
        """Pages that the device has looked at in place: it may read any part of them until they are unmapped."""
        memory.when_unmapped = self._in_place.remove
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
            if len(self._in_place) >= MAX_IN_PLACE:
                self._in_place.clear()
            self._in_place.add(start - start % PAGE, end + -end % PAGE)
        else:
            if self._unread.has(start, end) and self._holds_other(start, data):
                await self._all_read(until)
            self._unread.add(start, end)
        self._memory.put(start, data)

    async def finish(self, until: Until) -> None:
        """What the device read then, it has to have read by now."""
        if self._unread:
            await self._all_read(until)

    async def _all_read(self, until: Until) -> None:
        await until(
            lambda: not self._unread, f"the server did not read guest memory at {self._unread.first:#x}"
        )

    async def request(self, recorded: TracedMessage, until: Until) -> None:
        """As the base class; what the server read by itself comes first."""
        await self.finish(until)
        await super().request(recorded, until)

    async def serve(self) -> float:
        """Answer the reads that the recording has come to."""
        while (message := self._server.next_request()) is not None:
            request = _decoded(message)
            expected = self._may_read(request) if isinstance(request, DmaRead) else self._may_write(request)
            if not expected and not self._impatient:
                return GRACE_SECONDS
            self._impatient = False
            channel, _ = self._server.take_request()
            self.served += 1
            if isinstance(request, DmaRead):
                await self._read(channel, message, request)
            elif isinstance(request, DmaWrite):
                await self._wrote(channel, message, request)
                if expected and self._expected is None:
                    return (
                        FOREVER  # what comes next in the recording is there before the server's next request
                    )
            else:
                self._report.diverged(f"the server sent command {message.header.command}")
                await self._server.answer(channel, message, errno.ENOSYS)
        return FOREVER

    def lost_patience(self) -> None:
        """Answer what was not recorded, too."""
        self._impatient = self._server.next_request() is not None

    async def _expect(self, address: int, data: bytes, until: Until) -> None:
        """The server has to write ``data`` at ``address``, in as many pieces as it likes."""
        if not data:
            return
        self._expected = _Expected(address, data)
        try:
            await until(
                lambda: self._expected is None,
                f"the server did not write {shown(data)} to guest address {address:#x}",
            )
        finally:
            self._expected = None

    async def _wrote(self, channel: Channel, message: Message, request: DmaWrite) -> None:
        """The server writes: what was recorded, or else what nobody can tell, or a divergence."""
        expected = self._expected
        if expected is not None and expected.begins_with(request):
            if expected.take(len(request.data)):
                self._expected = None
        elif self._holds_other(request.address, request.data):
            self._expected = None
            self._report.diverged(
                _written_otherwise(expected.address, bytes(expected.data), request)
                if expected is not None
                else f"the server wrote {shown(request.data)} to guest address {request.address:#x}, which it did not"
            )
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
        self._unread.read(request.address, request.address + request.count)
        await self._server.answer(channel, message, DmaReadReply(request.address, data))

    def _may_read(self, request: DmaRead) -> bool:
        start, end = request.address, request.address + request.count
        if self._unread.has(start, end):
            return True
        return start < end and self._in_place.covers(start, end)

    def _may_write(self, request: object) -> bool:
        return isinstance(request, DmaWrite) and self._expected is not None

    def _holds_other(self, address: int, data: bytes) -> bool:
        try:
            return self._memory.get(address, len(data)) != data
        except OSError:
            return True


class _Expected:
    """What the server is to write, as far as it has not."""

    def __init__(self, address: int, data: bytes) -> None:
        self.address = address
        self.data = memoryview(data)

    def begins_with(self, request: DmaWrite) -> bool:
        """Whether this is what is written, or the first part of it."""
        return request.address == self.address and self.data[: len(request.data)] == request.data

    def take(self, length: int) -> bool:
        """So many bytes are written; whether nothing is left."""
        self.address += length
        self.data = self.data[length:]
        return not self.data


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
            f"the server wrote {shown(request.data)} to guest address {request.address:#x}, "
            f"and {shown(data)} to {address:#x} in the recording"
        )
    pairs = enumerate(zip(request.data, data, strict=False))
    at = next((index for index, (new, old) in pairs if new != old), min(len(request.data), len(data)))
    return (
        f"the server wrote {shown(request.data[at:]) or 'nothing'} to guest address {address + at:#x}, "
        f"and {shown(data[at:]) or 'nothing'} in the recording"
    )
