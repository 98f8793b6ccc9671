"""One client's messages, from the end of the handshake to the end of the connection.

Messages are served in the order they came. A register access is answered without a message object, and its deferred
work runs once the reply is on its way.
"""

from __future__ import annotations

import errno
import math
import time
from collections import deque
from contextlib import suppress

import trio

from protocol import (
    HEADER,
    HEADER_SIZE,
    REGION_ACCESS,
    REGION_REPLY_SIZE,
    Command,
    Decoder,
    Handshake,
    Header,
    Message,
    ProtocolError,
    pack_error_into,
    pack_read_reply_into,
    pack_write_reply_into,
)
from protocol.header import FLAG_NO_REPLY, MessageType
from server.dma.invalidation import UNMAP_SECONDS
from server.fds import ReceivedFds
from server.native.client_messages import ClientMessages
from server.native.handlers import HANDLERS, Later, Reply
from server.native.message_socket import RECEIVE_SIZE, MessageSocket
from server.session import WORK_SLICE_NS, Session

CHECKPOINT_NS = 5_000_000
"""Other tasks get a turn at least this often, however busy the line is."""
STALLED_SECONDS = 3.0
"""How long a message that has begun to bring fds may pause: less than the next client waits for the device."""
SHORT_DATA = 4096
"""Register accesses up to this many bytes take the short way."""

_READ = Command.REGION_READ.value
_WRITE = Command.REGION_WRITE.value
_ACCESS_SIZE = HEADER_SIZE + REGION_ACCESS.size
_COMMAND = MessageType.COMMAND.value


class Connection:
    """Serves the messages of one client that has said VERSION. The sockets and the session stay their owners'."""

    def __init__(
        self,
        main: MessageSocket,
        decoder: Decoder,
        handshake: Handshake,
        session: Session,
        client: ClientMessages,
    ) -> None:
        self._main = main
        self._decoder = decoder
        self._handshake = handshake
        self._session = session
        self._client = client
        self._sleep: trio.CancelScope | None = None
        self._held: deque[Message] = deque()
        """Commands that came while a reply had to wait: they are served behind it."""
        session.wake = self.wake
        self._reply = bytearray(REGION_REPLY_SIZE + SHORT_DATA)
        self._reply_view = memoryview(self._reply)

    async def serve(self) -> None:
        """Serve until the client hangs up. Raises ProtocolError and OSError when the stream cannot go on."""
        try:
            await self._serve()
        finally:
            ReceivedFds([fd for message in self._held for fd in message.fds]).close()

    async def _serve(self) -> None:
        main, work = self._main, self._session.work
        turn = time.monotonic_ns()
        while True:
            count = main.receive()
            if count < 0 and not work.runnable:
                count = main.receive_soon()
                if count < 0:
                    await self._wait_for_news(listens=True)
                    turn = time.monotonic_ns()
                    continue
            if count == 0:
                return
            if count > 0:
                await self._take(count)
                work.check()
            if work.runnable:
                work.run(WORK_SLICE_NS)
            if main.congested:
                await main.flush()
            if time.monotonic_ns() - turn > CHECKPOINT_NS:
                await trio.lowlevel.checkpoint()
                turn = time.monotonic_ns()

    def wake(self) -> None:
        """See to work that was deferred, or can go on, while :meth:`serve` waits for the client."""
        if self._sleep is not None:
            self._sleep.cancel()

    async def serve_twin(self, twin: MessageSocket) -> None:
        """Take replies from the twin socket until the client closes it. Raises ProtocolError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_flushing, twin)
            with suppress(OSError):  # closed with something unread: closed all the same
                await self._read_twin(twin)
            nursery.cancel_scope.cancel()
        self._client.disconnected()
        self.wake()

    async def _read_twin(self, twin: MessageSocket) -> None:
        decoder = Decoder(self._decoder.max_size, max_fds=0)
        while (count := twin.receive()) != 0:
            if count < 0:
                await twin.wait_readable()
                continue
            decoder.feed(twin.view[:count], twin.take_fds())
            for message in decoder:
                with ReceivedFds(message.fds):
                    if not message.header.is_reply:
                        raise ProtocolError(errno.EINVAL, "a command on the twin socket")
                    self._client.take_reply(message)
            self._session.work.run(WORK_SLICE_NS)
            if self._session.work.runnable:
                self.wake()

    async def _take(self, count: int) -> None:
        main, decoder = self._main, self._decoder
        done = self._serve_accesses(count) if decoder.idle and not main.fds else 0
        if done == count:
            return
        decoder.feed(main.view[done:count], main.take_fds())
        await self._serve_decoded()

    def _next_message(self) -> Message | None:
        return self._held.popleft() if self._held else self._decoder.next_message()

    async def _serve_decoded(self) -> None:
        while (message := self._next_message()) is not None:
            with ReceivedFds(message.fds) as fds:
                later = self._serve_message(message, fds)
            if later is not None:
                await self._answer_later(message.header, later)
            if self._main.congested:
                await self._main.flush()

    def _serve_accesses(self, count: int) -> int:
        """Serve the register accesses at the start of the buffer; returns how many bytes they were."""
        main, view = self._main, self._main.view
        done = 0
        while count - done >= _ACCESS_SIZE and not main.congested:
            message_id, command, size, flags, _ = HEADER.unpack_from(view, done)
            offset, region, length = REGION_ACCESS.unpack_from(view, done + HEADER_SIZE)
            if length > SHORT_DATA or flags & ~FLAG_NO_REPLY != _COMMAND:
                break
            end = done + size
            if command == _READ and size == _ACCESS_SIZE:
                reply_size = self._read(message_id, region, offset, length)
            elif command == _WRITE and size == _ACCESS_SIZE + length and end <= count:
                reply_size = self._write(message_id, region, offset, view[done + _ACCESS_SIZE : end])
            else:
                break
            if not flags:
                main.send(self._reply_view[:reply_size])
            done = end
        return done

    def _read(self, message_id: int, region: int, offset: int, length: int) -> int:
        try:
            data = self._session.region_read(region, offset, length)
        except Exception as error:
            return pack_error_into(self._reply, message_id, _READ, self._session.failed("REGION_READ", error))
        return pack_read_reply_into(self._reply, message_id, offset, region, data)

    def _write(self, message_id: int, region: int, offset: int, data: memoryview) -> int:
        try:
            self._session.region_write(region, offset, data)
        except Exception as error:
            return pack_error_into(
                self._reply, message_id, _WRITE, self._session.failed("REGION_WRITE", error)
            )
        return pack_write_reply_into(self._reply, message_id, offset, region, len(data))

    def _serve_message(self, message: Message, fds: ReceivedFds) -> Later | None:
        header = message.header
        if header.is_reply:
            self._client.take_reply(message)
            return None
        try:
            reply = self._answer(message, fds)
        except Exception as error:
            self._refuse(header, error)
            return None
        if isinstance(reply, Later):
            return reply
        if not header.no_reply:
            send_reply(self._main, header, reply)
        return None

    async def _answer_later(self, header: Header, later: Later) -> None:
        """Wait until the memory is no longer in use, but not so long that the client gives up; then answer.

        No other command of the client is served meanwhile, since what it asks next may depend on this. Deferred
        work goes on, for it may be what uses the memory, and so do the client's replies to it.
        """
        work = self._session.work
        later.unmapping.when_released(self.wake)
        # What the decoder holds of this read is still in the buffer that the next one goes to.
        may_read = self._decoder.idle
        with trio.move_on_after(UNMAP_SECONDS):
            while later.unmapping.pending:
                if work.runnable:
                    work.run(WORK_SLICE_NS)
                    await trio.lowlevel.checkpoint()
                    continue
                listens = may_read and not self._held
                await self._wait_for_news(listens=listens)
                if listens and not self._take_replies():
                    break  # the client hung up
        try:
            reply = later.reply()
        except Exception as error:
            self._refuse(header, error)
            return
        if not header.no_reply:
            send_reply(self._main, header, reply)

    async def _wait_for_news(self, *, listens: bool) -> None:
        # An fd may be the client's own end of the socket, which then never hangs up: the rest is not waited for.
        stalled = trio.current_time() + STALLED_SECONDS if self._decoder.holds_fds else math.inf
        with trio.CancelScope(deadline=stalled) as self._sleep:
            if listens:
                await self._main.wait_readable()
            else:
                await trio.sleep_forever()
        self._sleep = None
        if trio.current_time() >= stalled:
            raise ProtocolError(errno.ETIMEDOUT, f"no end of a message with fds in {STALLED_SECONDS:.0f} s")

    def _take_replies(self) -> bool:
        """Read while a reply has to wait: replies go to whom they are for, commands are held. False at the end."""
        count = self._main.take(RECEIVE_SIZE)
        if count > 0:
            self._decoder.feed(bytes(self._main.view[:count]), self._main.take_fds())
            while (message := self._decoder.next_message()) is not None:
                if message.header.is_reply:
                    with ReceivedFds(message.fds):
                        self._client.take_reply(message)
                else:
                    self._held.append(message)
        return count != 0

    def _refuse(self, header: Header, error: Exception) -> None:
        code = self._session.failed(_command_name(header.command), error)
        if not header.no_reply:
            size = pack_error_into(self._reply, header.message_id, header.command, code)
            self._main.send(self._reply_view[:size])

    def _answer(self, message: Message, fds: ReceivedFds) -> Reply | Later:
        header = message.header
        if not header.is_command:
            raise ProtocolError(
                errno.EINVAL, f"flags {header.flags:#x} are neither a command's nor a reply's"
            )
        self._handshake.check(header.command)
        handler = HANDLERS.get(header.command)
        if handler is None:
            raise ProtocolError(errno.ENOSYS, f"there is no command {header.command} for a server")
        if len(fds) and not handler.takes_fds:
            raise ProtocolError(errno.EINVAL, f"{len(fds)} fds with a command that takes none")
        return handler.serve(self._session, message.payload, fds)


async def _keep_flushing(twin: MessageSocket) -> None:
    with suppress(OSError):  # its reader sees the end, too
        await twin.keep_flushing()


def send_reply(sock: MessageSocket, header: Header, reply: Reply) -> None:
    """Answer the command of ``header``."""
    size = HEADER_SIZE + len(reply.payload)
    answer = Header(header.message_id, header.command, size, MessageType.REPLY.value)
    sock.send(answer.pack() + reply.payload, reply.fds)


def send_error(sock: MessageSocket, header: Header, code: int) -> None:
    """Refuse the command of ``header``."""
    reply = bytearray(HEADER_SIZE)
    pack_error_into(reply, header.message_id, header.command, code)
    sock.send(bytes(reply))


def _command_name(number: int) -> str:
    try:
        return Command(number).name
    except ValueError:
        return f"command {number}"
