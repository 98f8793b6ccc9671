"""From a fresh connection to a session on the device, and back to nothing."""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass

import structlog
import trio

from devices.contract import Log
from protocol import (
    Agreement,
    Decoder,
    Handshake,
    Header,
    Message,
    ProtocolError,
    Version,
    max_message_size,
)
from server.accepting import peer_pid
from server.dma.domain import DmaDomain
from server.dma.domains.soft import SoftDomain
from server.dma.errors import DmaDomainUnavailable, DmaError
from server.dma.limits import DEFAULT_LIMITS, PinLimits
from server.dma.memory import GuestMemoryMap
from server.engine import Engine
from server.fds import ReceivedFds
from server.first_error import first_error
from server.log import RepeatLimit
from server.native.client_messages import ClientMessages
from server.native.connection import send_error, send_reply
from server.native.handlers import MAX_DATA_XFER_SIZE, Reply
from server.native.message_socket import MessageSocket
from server.native.transport import MAX_FDS, NATIVE, Transport
from server.session import Session
from server.trace.mapped_areas import MappedAreas, has_mappable_areas, keep_looking
from server.trace.observed_memory import ObservedMemory
from server.trace.recorder import Recorder
from server.trace.recording import Recording, RecordingSocket, keep_flushing

HANDSHAKE_SECONDS = 10.0
"""A client that has not sent VERSION by then is dropped."""
MAX_DMA_MESSAGE = 64 * 1024
"""Most bytes that one DMA_READ or DMA_WRITE asks for: QEMU sends a reply in one non-blocking write and loses the rest
where the socket's buffer (208 KiB by default) does not take all of it."""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """What a client gets: a DMA domain of its own, and how much of its memory may be there."""

    limits: PinLimits = DEFAULT_LIMITS
    make_domain: Callable[[], DmaDomain] = SoftDomain
    transport: Transport = NATIVE
    recording: Recording | None = None
    client_is_here: bool = False
    """Whether the client is in this event loop, too."""


class ClientGone(Exception):  # noqa: N818 - an event of the connection
    """The client hung up before it said VERSION."""


async def serve_connection(
    client: socket.socket,
    engine: Engine,
    options: ConnectionOptions,
    log: structlog.typing.FilteringBoundLogger,
) -> None:
    """Serve one client to its end, however it ends; takes ``client`` over. Raises nothing but cancellation."""
    log = log.bind(pid=peer_pid(client))
    main = _make_socket(client, options)
    main.polls = not options.client_is_here
    decoder = Decoder(max_message_size(MAX_DATA_XFER_SIZE), MAX_FDS)
    try:
        await _serve(main, decoder, engine, options, log)
    except* ProtocolError as errors:
        broken = first_error(errors)
        _refuse_last(main, decoder, broken.errno)
        log.warning("client_dropped", reason=broken.reason)
    except* trio.TooSlowError:
        log.warning("client_dropped", reason=f"no VERSION in {HANDSHAKE_SECONDS:.0f} s")
    except* ClientGone:
        log.info("client_left", before="VERSION")
    except* OSError as errors:
        error = first_error(errors)
        log.info("client_dropped", reason=error.strerror or str(error))
    except* Exception as errors:
        log.warning("device_fault", where="connection", exc_info=first_error(errors))
    finally:
        main.close()
        ReceivedFds(decoder.take_fds()).close()
        if isinstance(main, RecordingSocket) and options.recording is not None:
            options.recording.finish(main.recorder)


def _make_socket(client: socket.socket, options: ConnectionOptions) -> MessageSocket:
    if options.recording is None:
        return options.transport.make_socket(client)
    return options.recording.make_socket(client, MAX_FDS, MAX_DATA_XFER_SIZE)


def _refuse_last(main: MessageSocket, decoder: Decoder, code: int) -> None:
    """Tell the client that its last message had a size that cannot be."""
    header = decoder.refused
    if header is not None and header.is_command and not header.no_reply:
        with suppress(OSError):
            send_error(main, header, code)


async def _serve(
    main: MessageSocket,
    decoder: Decoder,
    engine: Engine,
    options: ConnectionOptions,
    log: structlog.typing.FilteringBoundLogger,
) -> None:
    with trio.fail_after(HANDSHAKE_SECONDS):
        message = await _first_message(main, decoder)
    handshake = Handshake(options.transport.capabilities)
    with ReceivedFds(message.fds), _refusing(main, message.header):
        if not message.header.is_command:
            raise ProtocolError(errno.EINVAL, "the first message must be a command")
        handshake.check(message.header.command)
        reply = handshake.receive(message.payload)
        await engine.acquire()
    try:
        client = _Greeted(main, decoder, handshake, message.header, reply)
        await _attached(client, engine, options, log)
    finally:
        engine.release()


async def _first_message(main: MessageSocket, decoder: Decoder) -> Message:
    while True:
        message = decoder.next_message()
        if message is not None:
            return message
        # No more than VERSION: what follows may be for somebody else to read.
        count = main.take(decoder.missing)
        if count == 0:
            raise ClientGone
        if count < 0:
            await main.wait_readable()
        else:
            decoder.feed(bytes(main.view[:count]), main.take_fds())


@contextmanager
def _refusing(main: MessageSocket, header: Header) -> Iterator[None]:
    """Tell the client of an error before the connection ends because of it."""
    try:
        yield
    except (ProtocolError, OSError) as error:
        if header.is_command and not header.no_reply:
            send_error(main, header, error.errno or errno.EIO)
        raise


@dataclass(frozen=True, slots=True)
class _Greeted:
    """A client whose VERSION was accepted, and not answered yet."""

    main: MessageSocket
    decoder: Decoder
    handshake: Handshake
    header: Header
    """Of its VERSION."""
    version: Version
    """What it will be told."""

    @property
    def agreement(self) -> Agreement:
        agreement = self.handshake.agreement
        assert agreement is not None  # noqa: S101 - a handshake that did not raise has one
        return agreement

    @property
    def recorder(self) -> Recorder | None:
        return self.main.recorder if isinstance(self.main, RecordingSocket) else None

    def refusing(self) -> AbstractContextManager[None]:
        return _refusing(self.main, self.header)

    def answer(self, theirs: socket.socket | None) -> None:
        """Accept; ``theirs`` is the client's end of the twin socket."""
        fds = () if theirs is None else (theirs.fileno(),)
        send_reply(self.main, self.header, Reply(self.version.pack(), fds))
        if theirs is not None:
            theirs.close()  # or the client could not close it


async def _attached(
    client: _Greeted, engine: Engine, options: ConnectionOptions, log: structlog.typing.FilteringBoundLogger
) -> None:
    recorder = client.recorder
    if recorder is not None and options.recording is not None:
        options.recording.start(recorder, areas=has_mappable_areas(engine.device))
    with ExitStack() as stack:
        twin, theirs = _twin_socket(client, stack)
        quiet = RepeatLimit(log)
        messages = ClientMessages(twin or client.main, quiet)
        session = _session(client, messages, engine, options, quiet, stack)
        areas: MappedAreas | None = None
        with client.refusing():
            if recorder is not None:
                areas = stack.enter_context(MappedAreas(engine.device, recorder))
            connection = options.transport.connect(
                client.main, client.decoder, client.handshake, session, messages, stack
            )
        engine.attach(session)
        stack.callback(engine.detach)
        client.answer(theirs)
        _log_attached(client.agreement, log)
        async with trio.open_nursery() as nursery:
            if twin is not None:
                nursery.start_soon(connection.serve_twin, twin)
            if recorder is not None:
                nursery.start_soon(keep_flushing, recorder)
            if areas:
                nursery.start_soon(keep_looking, areas)
            await connection.serve()
            nursery.cancel_scope.cancel()
        log.info("client_left", cut_off=client.decoder.in_message, **session.status())


def _log_attached(agreement: Agreement, log: Log) -> None:
    log.info(
        "client_attached",
        version=f"{agreement.major}.{agreement.minor}",
        twin_socket=agreement.twin_socket_fd is not None,
        max_data_xfer_size=agreement.client_max_data_xfer_size,
    )


def _session(
    client: _Greeted,
    messages: ClientMessages,
    engine: Engine,
    options: ConnectionOptions,
    log: Log,
    stack: ExitStack,
) -> Session:
    """The client's session on the device, which ``stack`` closes. Raises OSError, which the client has been told."""
    recorder = client.recorder
    with client.refusing():
        memory = _memory(client.agreement, options, log, recorder, stack)
    max_data = min(client.agreement.client_max_data_xfer_size, MAX_DATA_XFER_SIZE)
    session = Session(engine.device, memory, messages.work, log, max_data)
    stack.callback(session.close)
    if recorder is not None:
        session.interrupts.observer = recorder.interrupt
    return session


def _memory(
    agreement: Agreement,
    options: ConnectionOptions,
    log: Log,
    recorder: Recorder | None,
    stack: ExitStack,
) -> GuestMemoryMap:
    """The client's memory, over a DMA domain of its own, which ``stack`` closes. Raises OSError."""
    try:
        domain = options.make_domain()
    except DmaDomainUnavailable as error:
        raise DmaError(errno.ENODEV, str(error)) from error
    stack.callback(domain.close)
    make_memory = GuestMemoryMap if recorder is None else functools.partial(ObservedMemory, recorder)
    return make_memory(
        log,
        domain,
        limits=options.limits,
        # A client that proposed no limit was not told of ours, which holds all the same.
        max_regions=min(agreement.max_dma_maps, options.transport.max_dma_maps),
        max_data_xfer_size=min(agreement.client_max_data_xfer_size, MAX_DMA_MESSAGE),
    )


def _twin_socket(
    client: _Greeted, stack: ExitStack
) -> tuple[MessageSocket, socket.socket] | tuple[None, None]:
    """Our end, and the client's, both closed by ``stack``; none where the client has asked for none."""
    if client.agreement.twin_socket_fd is None:
        return None, None
    main = client.main
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    twin = main.twin(ours) if isinstance(main, RecordingSocket) else MessageSocket(ours, max_fds=0)
    stack.callback(twin.close)
    stack.callback(theirs.close)
    return twin, theirs
