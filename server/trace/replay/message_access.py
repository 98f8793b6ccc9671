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
from server.trace.replay.report import Report
from server.trace.replay.server_connection import MAX_DATA, ServerConnection
from server.trace.replay.unread import Unread

GRACE_SECONDS = 0.05
"""How long a request waits for the recording to come to it, before it is answered as one that was not recorded."""
FOREVER = 3600.0
PAGE_SHIFT = 12


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
            expected = isinstance(request, DmaRead) and self._may_read(request)
            if not expected and not self._impatient:
                return GRACE_SECONDS
            self._impatient = False
            channel, _ = self._server.take_request()
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
        self._impatient = self._server.next_request() is not None

    async def _expect(self, address: int, data: bytes, until: Until) -> None:
        """The server has to write ``data`` at ``address``, in as many pieces as it likes."""
        what = f"the server did not write {shown(data)} to guest address {address:#x}"
        while data:
            await until(self._writes_next, what)
            channel, message = self._server.take_request()
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

    def _writes_next(self) -> bool:
        message = self._server.next_request()
        return message is not None and isinstance(_decoded(message), DmaWrite)

    async def _unexpected(self, channel: Channel, message: Message, request: DmaWrite) -> None:
        if not await self._harmless(channel, message, request):
            self._report.diverged(
                f"the server wrote {shown(request.data)} to guest address {request.address:#x}, which it did not"
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
        self._unread.read(request.address, request.address + request.count)
        await self._server.answer(channel, message, DmaReadReply(request.address, data))

    def _may_read(self, request: DmaRead) -> bool:
        start, end = request.address, request.address + request.count
        if self._unread.has(start, end):
            return True
        return request.count > 0 and self._in_place.issuperset(
            range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1)
        )

    def _holds_other(self, address: int, data: bytes) -> bool:
        try:
            return self._memory.get(address, len(data)) != data
        except OSError:
            return True


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
