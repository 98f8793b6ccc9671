"""One client's messages, served by libvfio-user where it can, and by the project's own engine where it cannot.

How the messages that the library serves get to it, subclasses know. Of the others, DMA_MAP and DMA_UNMAP go through
the library, too, as requests of ours: what it tells of a DMA region leaves out the file, which the session needs.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol import (
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
from server.fds import ReceivedFds
from server.libvfio_user.context import Context
from server.native.client_messages import ClientMessages
from server.native.connection import Connection
from server.native.handlers import EMPTY, Later, Reply
from server.native.message_socket import MessageSocket
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
"""What the library serves as the client sent it. Not what a device is: it sends an fd per mappable area, refuses where
that is over max_msg_fds, and counts a region for migration. Not the interrupts: it has one set of eventfds for all
interrupt indexes, blocks where a client's eventfd does, and does not mask. Not what it has never heard of."""


def is_for_library(command: int, size: int, flags: int, payload: memoryview) -> bool:
    """Whether the library serves a message of ``size`` bytes, of whose payload there is ``payload`` so far."""
    if command not in LIBRARY_COMMANDS or flags & ~FLAG_NO_REPLY != _COMMAND:
        return False
    if command == _READ:
        if size != _ACCESS_END or len(payload) < REGION_ACCESS.size:
            return size == _ACCESS_END
        _, _, length = REGION_ACCESS.unpack_from(payload)
        return 0 < int(length) <= MAX_LIBRARY_DATA
    if command == _WRITE:
        return _ACCESS_END < size <= _MAX_LIBRARY_MESSAGE
    return size == HEADER_SIZE


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
        main: MessageSocket,
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
        self._refusals: list[str] = []
        """What the library said of the message at hand, beside what its callbacks reported themselves."""
        self._reported = False
        self._full = False
        self.library_regions = 0
        """How many DMA regions the library holds; what is mapped beyond, the session alone knows."""
        self._dma_regions: dict[int, int] = {}
        """Sizes of the regions that the library has, by their address."""
        self._unmapping: DmaUnmapping | None = None
        """What the library is about to unmap, too."""
        self._bitmap = b""
        self._broken: OSError | None = None
        """Why the connection ends as soon as the client has been told."""

    async def _serve_decoded(self) -> None:
        await super()._serve_decoded()
        if self._broken is not None:
            raise self._broken

    def _answer(self, message: Message, fds: ReceivedFds) -> Reply | Later:
        command = message.header.command
        if command == Command.DMA_MAP:
            return self._map(DmaMap.unpack(message.payload), fds)
        if command == Command.DMA_UNMAP and len(fds) == 0:
            return self._unmap(DmaUnmap.unpack(message.payload))
        return super()._answer(message, fds)

    def _map(self, request: DmaMap, fds: ReceivedFds) -> Reply:
        """Map in the session, which is the stricter one, and then in the library, if it has room. Raises OSError."""
        with fds.duplicates() as copies:
            self._session.dma_map(request, fds)
            if len(self._dma_regions) >= self.library_regions:
                self._report_full()
                return EMPTY
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
        if not steps:  # the library knows none of them
            self._unmapping = None
            alone = Later(unmapping)
            return alone if unmapping.pending else alone.reply()
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

    def _report_full(self) -> None:
        if not self._full:
            self._full = True
            self._session.log.info(
                "libvfio_user_full",
                dma_regions=len(self._dma_regions),
                effect="it is told of no more of them",
            )
