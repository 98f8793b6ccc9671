"""The server has the files of the guest's memory.

Whatever the device is to find up to the next message of the client is put there before the message that makes it look,
and what the device wrote has to be there before the next is sent. That is not exact where the guest changed the same
place twice in between (a ring, to which it added without a kick), or where the device was not yet done when the client
sent something else.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.trace import Access
from server.trace.reader import TraceReader
from server.trace.replay.intervals import Interval
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.memory_access import RecordedRequests, Until, shown
from server.trace.replay.report import Report
from server.trace.replay.server_connection import ServerConnection
from server.trace.replay.sparse_bytes import SparseBytes

POLL_SECONDS = 0.0005
"""Memory changes without a word, so it is looked at again and again."""
LINE = 64
"""Bytes that are looked at one after another where a longer run is not there: so it is said which are missing."""


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
            if data in self._memory.found(address, len(data)):
                continue
            for at, line in _lines(address, data):
                found = self._memory.found(at, len(line))
                if not found:
                    self._report.diverged(
                        f"guest address {at:#x}, where the recorded server wrote, is not mapped"
                    )
                elif line not in found:
                    await self._wait_for(at, line, until)

    async def _wait_for(self, address: int, data: bytes, until: Until) -> None:
        def there() -> bool:
            return data in self._memory.found(address, len(data))

        await until(there, f"the server did not write {shown(data)} to guest address {address:#x}")

    async def serve(self) -> float:
        """Nothing to serve, but memory changes without a word."""
        return POLL_SECONDS

    def lost_patience(self) -> None:
        """Look again."""


def _lines(address: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """``data`` in pieces that end where a line does, by address."""
    start = 0
    while start < len(data):
        end = start + LINE - (address + start) % LINE
        yield address + start, data[start:end]
        start = end
