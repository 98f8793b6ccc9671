"""One client's messages, served by libvfio-user where it can, and by the project's own engine where it cannot.

The library reads a message with blocking calls, and is lost where one comes in pieces. So each message is looked at
before the library may read it: it has to be whole, of a kind that the library serves as it should be, and the client
must have room for the reply. Everything else is read here, and served as the native transport serves it.
"""

from __future__ import annotations

import errno

import trio

from protocol import (
    HEADER,
    HEADER_SIZE,
    REGION_ACCESS,
    Command,
    Decoder,
    DmaMap,
    DmaUnmap,
    DmaUnmapFlags,
    Handshake,
    Message,
    ProtocolError,
)
from protocol.header import FLAG_NO_REPLY, TYPE_MASK, MessageType
from server.dma.errors import DmaError
from server.dma.invalidation import UNMAP_SECONDS
from server.fds import ReceivedFds
from server.libvfio_user.context import Context
from server.libvfio_user.peeking_socket import PEEK_SIZE, PeekingSocket
from server.native.client_messages import ClientMessages
from server.native.connection import Connection
from server.native.handlers import Later, Reply
from server.native.message_socket import RECEIVE_SIZE
from server.session import WORK_SLICE_NS, DmaUnmapping, Session

MAX_LIBRARY_DATA = 32 * 1024
"""Bytes of data in one message that the library serves: a request and a reply of that size fit in the socket."""

_READ = Command.REGION_READ.value
_WRITE = Command.REGION_WRITE.value
_MAP = Command.DMA_MAP.value
_UNMAP = Command.DMA_UNMAP.value
_RESET = Command.DEVICE_RESET.value
_ACCESSES = (_READ, _WRITE)
_COMMAND = MessageType.COMMAND.value
_REPLY = MessageType.REPLY.value
_ACCESS_END = HEADER_SIZE + REGION_ACCESS.size
_MAX_LIBRARY_MESSAGE = _ACCESS_END + MAX_LIBRARY_DATA

LIBRARY_COMMANDS = frozenset(
    command.value
    for command in (
        Command.DMA_MAP,
        Command.DMA_UNMAP,
        Command.DEVICE_GET_REGION_INFO,
        Command.DEVICE_GET_REGION_IO_FDS,
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.DEVICE_RESET,
    )
)
"""What the library serves. Not the interrupts: it has one set of eventfds for all interrupt indexes, blocks where a
client's eventfd does, and does not mask. Not what it has never heard of."""


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
        self._map: tuple[DmaMap, ReceivedFds] | None = None
        self._unmap: DmaUnmap | None = None
        self._unmapping: DmaUnmapping | None = None
        self._unconfirmed: DmaMap | None = None
        """What the session has mapped, and the library has not said yes to."""

    async def _take(self, count: int) -> None:
        """Serve what was looked at: ``count`` bytes."""
        main, view = self._peeking, self._peeking.peeked
        if self._decoder.in_message:
            await self._serve_here(self._decoder.missing)
            return
        done = 0
        while count - done >= HEADER_SIZE:
            _, command, size, flags, _ = HEADER.unpack_from(view, done)
            if not self._is_for_library(command, size, flags, done, count):
                await self._serve_here(size)
                return
            if size > count - done:
                if done:
                    return  # and look at all of it
                if size > main.available():
                    break
                if command not in _ACCESSES:
                    await self._serve_here(size)
                    return
            if not main.writable:
                await main.wait_writable()
            await self._serve_by_library(command, view[done + HEADER_SIZE : done + size])
            done += size
            if main.fds_waiting or main.congested:
                return
        if done == 0:
            await self._wait_for_more()

    def _is_for_library(self, command: int, size: int, flags: int, start: int, end: int) -> bool:
        """Whether the library is to read the message whose header is at ``start`` of what was looked at."""
        if command not in LIBRARY_COMMANDS or flags & ~FLAG_NO_REPLY != _COMMAND or size < HEADER_SIZE:
            return False
        if self._peeking.fds_waiting and not self._fds_belong(command):
            return False
        if command == _READ:
            if size != _ACCESS_END:
                return False
            if end - start < _ACCESS_END:
                return True
            _, _, length = REGION_ACCESS.unpack_from(self._peeking.peeked, start + HEADER_SIZE)
            return 0 < int(length) <= MAX_LIBRARY_DATA
        if command == _WRITE:
            return _ACCESS_END < size <= _MAX_LIBRARY_MESSAGE
        if command == _RESET:
            return size == HEADER_SIZE
        return HEADER_SIZE < size <= PEEK_SIZE

    def _fds_belong(self, command: int) -> bool:
        """Whether the message at the head of the stream may have the fds that it has, which may be none."""
        with ReceivedFds(self._peeking.peek_fds()) as fds:
            return len(fds) == 0 or (command == _MAP and len(fds) == 1)

    async def _serve_here(self, size: int) -> None:
        """Read what there is of a message of ``size`` bytes, and serve it if it is whole."""
        count = self._peeking.take(max(HEADER_SIZE, min(size, RECEIVE_SIZE)))
        self._decoder.feed(self._peeking.view[: max(count, 0)], self._peeking.take_fds())
        await self._serve_decoded()

    async def _wait_for_more(self) -> None:
        """Sleep until more of the message at the head of the stream is there, or there is work to do."""
        seen = self._peeking.available()
        ended = False
        with trio.CancelScope() as self._sleep:
            ended = not await self._peeking.wait_for_more(seen)
        self._sleep = None
        if ended:
            await self._serve_here(seen)  # so that the decoder has what was cut off

    async def _serve_by_library(self, command: int, payload: memoryview) -> None:
        self.command = Command(command).name
        try:
            if command in _ACCESSES:
                self.context.run()
            else:
                await self._serve_whole_by_library(command, payload)
        finally:
            if self._refusals or self._reported:
                self._report_refusals()

    async def _serve_whole_by_library(self, command: int, payload: memoryview) -> None:
        fds = ReceivedFds()
        try:
            if command == _MAP:
                fds = ReceivedFds(self._peeking.peek_fds())
                self._map = (DmaMap.unpack(payload), fds)
            elif command == _UNMAP:
                self._unmap = DmaUnmap.unpack(payload)
        except ProtocolError:
            pass  # the library says so, too
        try:
            self.context.run()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            await self._wait_until_quiesced()
        finally:
            fds.close()
            self._map = self._unmap = None
        self._undo_unconfirmed()

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

    def quiesce(self) -> bool:
        """Do what the session has to do before the library does the same; see :class:`Served`."""
        if self._map is not None:
            (request, fds), self._map = self._map, None
            try:
                self._session.dma_map(request, fds)
            except DmaError as error:
                if error.errno == errno.ENOSPC:
                    self._report_exhaustion()
                raise
            self._unconfirmed = request
        elif self._unmap is not None:
            unmap, self._unmap = self._unmap, None
            self._check_unmap(unmap)
            self._unmapping = self._session.begin_dma_unmap(unmap)
            return self._unmapping.pending
        return False

    def _report_exhaustion(self) -> None:
        if not self._exhausted:
            self._exhausted = True
            self._session.log.warning(
                "dma_regions_exhausted", regions=len(self._dma_regions), fix="serve with --transport native"
            )

    def _check_unmap(self, request: DmaUnmap) -> None:
        """Refuse what the library would refuse once the session has done it."""
        if request.bitmap is not None:
            raise ProtocolError(errno.EINVAL, "libvfio-user unmaps without a dirty bitmap only")
        if request.flags & DmaUnmapFlags.ALL or self._dma_regions.get(request.address) == request.size:
            return
        end = request.address + request.size
        inside = any(
            start < end and request.address < start + size for start, size in self._dma_regions.items()
        )
        if inside:
            raise DmaError(errno.EINVAL, "libvfio-user unmaps one whole DMA region at a time")

    def dma_registered(self, iova: int, size: int) -> None:
        """The library has the region, too."""
        self._unconfirmed = None
        self._dma_regions[iova] = size

    def dma_unregistered(self, iova: int, size: int) -> None:
        """Nothing of ours refers to the region when this returns."""
        assert self._dma_regions.pop(iova) == size  # noqa: S101 - the library's own word, when it was added
        if self._unmapping is not None:
            unmapping, self._unmapping = self._unmapping, None
            unmapping.finish()

    def _undo_unconfirmed(self) -> None:
        """The library has refused a map that the session had taken, and has told the client so."""
        if self._unconfirmed is not None:
            request, self._unconfirmed = self._unconfirmed, None
            self._session.memory.unmap(request.address, request.size)
        if self._unmapping is not None:  # of all regions, where there are none
            unmapping, self._unmapping = self._unmapping, None
            unmapping.finish()

    def _answer(self, message: Message, fds: ReceivedFds) -> Reply | Later:
        if message.header.command in (_MAP, _UNMAP):
            raise ProtocolError(
                errno.EINVAL,
                f"{Command(message.header.command).name} for libvfio-user: in one piece, one fd at most",
            )
        return super()._answer(message, fds)

    async def _wait_until_quiesced(self) -> None:
        """Wait until the memory is no longer in use, but not so long that the client gives up.

        Deferred work goes on, for it may be what uses the memory, and so do the client's replies to it, until a
        command comes, which nobody may read before the library has answered.
        """
        unmapping, work = self._unmapping, self._session.work
        assert unmapping is not None  # noqa: S101 - it is what the library was told to wait for
        unmapping.when_released(self.wake)
        listens = True
        with trio.move_on_after(UNMAP_SECONDS):
            while unmapping.pending:
                if work.runnable:
                    work.run(WORK_SLICE_NS)
                    await trio.lowlevel.checkpoint()
                    continue
                await self._wait_for_news(listens=listens)
                if listens:
                    count = self._peeking.receive()
                    if count == 0:
                        break  # the client hung up
                    listens = count < 0 or await self._take_only_a_reply(count)
        self.context.quiesced()

    async def _take_only_a_reply(self, count: int) -> bool:
        """Take the reply at the head of the stream; False where something else is there."""
        if self._decoder.in_message:
            await self._serve_here(self._decoder.missing)
            return True
        if count < HEADER_SIZE:
            return False
        _, _, size, flags, _ = HEADER.unpack_from(self._peeking.peeked)
        if flags & TYPE_MASK != _REPLY:
            return False
        await self._serve_here(size)
        return True
