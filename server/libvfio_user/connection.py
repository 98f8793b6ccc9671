"""One client's messages, served by libvfio-user where it can, and by the project's own engine where it cannot.

The library reads a message with blocking calls, and is lost where one comes in pieces. So each message is looked at
before the library may read it: it has to be whole and without fds, of a kind that the library serves as it should be,
and the client must have room for the reply. Everything else is read here. Of that, DMA_MAP and DMA_UNMAP go through
the library, too, as requests of ours: what it tells of a DMA region leaves out the file, which the session needs.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from protocol import (
    HEADER,
    HEADER_SIZE,
    REGION_ACCESS,
    Command,
    Decoder,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    Handshake,
    Message,
)
from protocol.header import FLAG_NO_REPLY, MessageType
from server.dma.errors import DmaError
from server.fds import ReceivedFds
from server.libvfio_user.context import Context
from server.libvfio_user.peeking_socket import PeekingSocket
from server.native.client_messages import ClientMessages
from server.native.connection import Connection
from server.native.handlers import EMPTY, Later, Reply
from server.native.message_socket import RECEIVE_SIZE
from server.session import DmaUnmapping, Session

MAX_LIBRARY_DATA = 32 * 1024
"""Bytes of data in one message that the library serves: a request and a reply of that size fit in the socket."""

_READ = Command.REGION_READ.value
_WRITE = Command.REGION_WRITE.value
_COMMAND = MessageType.COMMAND.value
_ACCESS_END = HEADER_SIZE + REGION_ACCESS.size
_MAX_LIBRARY_MESSAGE = _ACCESS_END + MAX_LIBRARY_DATA
_PERMISSIONS = DmaMapFlags.READ | DmaMapFlags.WRITE

LIBRARY_COMMANDS = {
    command.value: command.name
    for command in (
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.DEVICE_RESET,
    )
}
"""What the library reads from the client itself. Not what a device is: it sends an fd per mappable area, refuses where
that is over max_msg_fds, and counts a region for migration. Not the interrupts: it has one set of eventfds for all
interrupt indexes, blocks where a client's eventfd does, and does not mask. Not what it has never heard of."""


@dataclass(frozen=True, slots=True)
class LaterByLibrary(Later):
    """A DMA_UNMAP that the library waits with until nothing uses the memory any more."""

    connection: LibraryConnection
    steps: deque[DmaUnmap]
    """What else the library is to unmap."""

    def reply(self) -> Reply:
        """As for :class:`Later`."""
        return self.connection.go_on(self.unmapping, self.steps)


class LibraryConnection(Connection):
    """A :class:`Connection` that leaves most messages to a :class:`Context`, and is what that calls back."""

    def __init__(
        self,
        main: PeekingSocket,
        decoder: Decoder,
        handshake: Handshake,
        session: Session,
        client: ClientMessages,
    ) -> None:
        super().__init__(main, decoder, handshake, session, client)
        self.context: Context
        """Set by whoever made both."""
        self.region_read = session.region_read
        self.region_write = session.region_write
        self.reset = session.reset
        self.command = ""
        self._peeking = main
        self._refusals: list[str] = []
        """What the library said of the message at hand, beside what its callbacks reported themselves."""
        self._reported = False
        self._exhausted = False
        self._dma_regions: dict[int, int] = {}
        """Sizes of the regions that the library has, by their address."""
        self._unmapping: DmaUnmapping | None = None
        """What the library is about to unmap, too."""
        self._bitmap = b""
        self._broken: OSError | None = None
        """Why the connection ends as soon as the client has been told."""

    async def _take(self, count: int) -> None:
        """Serve what was looked at: ``count`` bytes."""
        main, view = self._peeking, self._peeking.peeked
        if self._decoder.in_message or main.fds_waiting:
            await self._serve_here(self._decoder.missing)
            return
        done = 0
        while count - done >= HEADER_SIZE:
            _, command, size, flags, _ = HEADER.unpack_from(view, done)
            if not self._is_for_library(command, size, flags, done, count):
                await self._serve_here(max(size, HEADER_SIZE))
                return
            if size > count - done:
                if done:
                    return  # and look at all of it
                if size > main.available():
                    break
            if not main.writable:
                await main.wait_writable()  # the library loses a reply that does not go out at once
            self.command = LIBRARY_COMMANDS[command]
            self.context.run()
            if self._refusals or self._reported:
                self._report_refusals()
            done += size
        if done == 0:
            await self._wait_for_more()

    def _is_for_library(self, command: int, size: int, flags: int, start: int, end: int) -> bool:
        """Whether the library is to read the message whose header is at ``start`` of what was looked at."""
        if command not in LIBRARY_COMMANDS or flags & ~FLAG_NO_REPLY != _COMMAND:
            return False
        if command == _READ:
            if size != _ACCESS_END or end - start < _ACCESS_END:
                return size == _ACCESS_END
            _, _, length = REGION_ACCESS.unpack_from(self._peeking.peeked, start + HEADER_SIZE)
            return 0 < int(length) <= MAX_LIBRARY_DATA
        if command == _WRITE:
            return _ACCESS_END < size <= _MAX_LIBRARY_MESSAGE
        return size == HEADER_SIZE

    async def _serve_here(self, size: int) -> None:
        """Read what there is of a message of ``size`` bytes, and serve it if it is whole."""
        count = self._peeking.take(min(size, RECEIVE_SIZE))
        self._decoder.feed(self._peeking.view[: max(count, 0)], self._peeking.take_fds())
        await self._serve_decoded()
        if self._broken is not None:
            raise self._broken

    async def _wait_for_more(self) -> None:
        """Sleep until more of the message at the head of the stream is there, or there is work to do."""
        seen = self._peeking.available()
        ended = False
        with trio.CancelScope() as self._sleep:
            ended = not await self._peeking.wait_for_more(seen)
        self._sleep = None
        if ended:
            await self._serve_here(seen)  # so that the decoder has what was cut off

    def _answer(self, message: Message, fds: ReceivedFds) -> Reply | Later:
        command = message.header.command
        if command == Command.DMA_MAP:
            return self._map(DmaMap.unpack(message.payload), fds)
        if command == Command.DMA_UNMAP and len(fds) == 0:
            return self._unmap(DmaUnmap.unpack(message.payload))
        return super()._answer(message, fds)

    def _map(self, request: DmaMap, fds: ReceivedFds) -> Reply:
        """Map in the session, which is the stricter one, and then in the library. Raises OSError."""
        with fds.duplicates() as copies:
            try:
                self._session.dma_map(request, fds)
            except DmaError as error:
                if error.errno == errno.ENOSPC:
                    self._report_exhaustion()
                raise
            flags = request.flags & _PERMISSIONS
            try:
                self._ask(DmaMap(request.address, request.size, flags, request.offset), copies.numbers)
            except OSError:
                self._session.memory.unmap(request.address, request.size)
                self._session.counters.dma_maps -= 1
                raise
        return EMPTY

    def _unmap(self, request: DmaUnmap) -> Reply | Later:
        """Begin to unmap in the session, and have the library wait until nothing uses the memory. Raises OSError."""
        unmapping = self._session.begin_dma_unmap(request)
        self._unmapping = unmapping
        if request.flags & DmaUnmapFlags.ALL:
            steps = deque([DmaUnmap(flags=DmaUnmapFlags.ALL)])
        else:
            inside = range(request.address, request.address + request.size)
            steps = deque(DmaUnmap(*region) for region in self._dma_regions.items() if region[0] in inside)
        later = LaterByLibrary(unmapping, self, steps)
        try:
            self._ask(steps.popleft())
        except OSError as error:
            if error.errno == errno.EBUSY:
                return later
            self._let_go()
            raise
        return self._finish_unmap(unmapping, steps)

    def _finish_unmap(self, unmapping: DmaUnmapping, steps: Iterable[DmaUnmap]) -> Reply:
        for step in steps:
            self._ask(step)
        self._let_go()  # where there was no region to be told of
        return Reply(unmapping.request.reply(self._bitmap).pack())

    def go_on(self, unmapping: DmaUnmapping, steps: Iterable[DmaUnmap]) -> Reply:
        """The library need not wait any longer, whether the memory is still in use or not. Raises OSError."""
        try:
            self.context.quiesced()
        except OSError as error:
            self._broken = error
            raise
        return self._finish_unmap(unmapping, steps)

    def _ask(self, value: DmaMap | DmaUnmap, fds: Sequence[int] = ()) -> None:
        try:
            self.context.ask(value, fds)
        except OSError as error:
            # What is unmapped in the session and not in the library, nobody could go on with.
            if self.context.lost or (isinstance(value, DmaUnmap) and error.errno != errno.EBUSY):
                self._broken = error
            if self._refusals:
                raise OSError(error.errno, f"libvfio-user: {'; '.join(self._refusals)}") from error
            raise
        finally:
            self._refusals.clear()

    def quiesce(self) -> bool:
        """True while a holder that asked for time uses what is about to be unmapped; see :class:`Served`."""
        return self._unmapping is not None and self._unmapping.pending

    def dma_registered(self, iova: int, size: int) -> None:
        """The library has the region, too."""
        self._dma_regions[iova] = size

    def dma_unregistered(self, iova: int) -> None:
        """Nothing of ours refers to the region when this returns."""
        self._dma_regions.pop(iova, None)
        self._let_go()

    def _let_go(self) -> None:
        if self._unmapping is not None:
            unmapping, self._unmapping = self._unmapping, None
            self._bitmap = unmapping.finish()

    def failed(self, command: str, error: Exception) -> int:
        """Log why a callback failed, and give the errno."""
        self._reported = True
        return self._session.failed(command, error)

    def refused(self, reason: str) -> None:
        """The library says that something failed: a callback, or else it is what refuses."""
        self._refusals.append(reason)

    def _report_refusals(self) -> None:
        if not self._reported:
            self._session.counters.errors += 1
            self._session.log.info("request_refused", command=self.command, reason="; ".join(self._refusals))
        self._refusals.clear()
        self._reported = False

    def _report_exhaustion(self) -> None:
        if not self._exhausted:
            self._exhausted = True
            self._session.log.warning(
                "dma_regions_exhausted", regions=len(self._dma_regions), fix="serve with --transport native"
            )
