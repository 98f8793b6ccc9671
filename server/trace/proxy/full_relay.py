"""A connection through a proxy that takes in every message whole, and shows it to :class:`FullVisibility`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from devices.contract import Log
from protocol import DEFAULT_MAX_FDS, Decoder, Message, ProtocolError, encode_error, max_message_size
from server.fds import ReceivedFds
from server.native.message_socket import MessageSocket
from server.trace.proxy.full_visibility import FullVisibility, Lane
from server.trace.proxy.pump import Outlet, first_to_end, pass_on_end, receive
from server.trace.proxy.spliced_twin import SplicedTwin
from server.trace.proxy.tap import MAX_DATA
from server.trace.recorder import Recorder

MAX_FDS = DEFAULT_MAX_FDS
"""Fds in one message."""

Take = Callable[[Message, ReceivedFds], None]


class FullRelay:
    """One client and its server."""

    def __init__(self, client: MessageSocket, server: MessageSocket, recorder: Recorder, log: Log) -> None:
        """The sockets stay the caller's."""
        self._client = client
        self._server = server
        self._visibility = FullVisibility(recorder, log)
        self._from_client = _new_decoder()
        self._broken: ProtocolError | None = None

    async def run(self) -> str:
        """Serve until one side has ended, and say which; once.

        Raises ProtocolError where a stream cannot go on, and OSError.
        """
        lane = Lane(Outlet(self._client), Outlet(self._server))
        try:
            async with trio.open_nursery() as nursery:
                self._visibility.on_twin = lambda twin: nursery.start_soon(self._serve_twin, twin)
                nursery.start_soon(self._visibility.interrupts.serve)
                ended = await first_to_end(
                    client=partial(self._serve_client, lane),
                    server=partial(self._read_server, lane, self._server),
                    flusher=lane.server.keep_flushing,
                )
                nursery.cancel_scope.cancel()
        finally:
            self._visibility.close()
        if self._broken is not None:
            self._refuse_last(lane.client)
            raise self._broken
        return ended

    async def _serve_client(self, lane: Lane) -> None:
        """One that breaks its stream counts as one that ends it: what it had asked before is answered."""
        try:
            await self._read_client(lane, self._client, self._from_client)
        except ProtocolError as error:
            self._broken = error
        await pass_on_end(self._client, self._server)

    async def _serve_twin(self, twin: SplicedTwin) -> None:
        """Serve the twin socket until one end of it is closed; the connection goes on without."""
        client, server = MessageSocket(twin.client, MAX_FDS), MessageSocket(twin.server, MAX_FDS)
        lane = Lane(Outlet(client), Outlet(server), twin=True)
        try:
            await first_to_end(
                client=partial(self._read_client, lane, client, _new_decoder()),
                server=partial(self._read_server, lane, server),
                flusher=lane.server.keep_flushing,
            )
        finally:
            client.close()
            server.close()
            twin.close()

    async def _read_client(self, lane: Lane, client: MessageSocket, decoder: Decoder) -> None:
        await _read(client, decoder, partial(self._visibility.from_client, lane), lane.server)

    async def _read_server(self, lane: Lane, server: MessageSocket) -> None:
        await _read(
            server, _new_decoder(), partial(self._visibility.from_server, lane), lane.client, lane.server
        )

    def _refuse_last(self, client: Outlet) -> None:
        """Tell the client that its last message had a size that cannot be."""
        header = self._from_client.refused
        if header is not None and header.is_command and not header.no_reply and self._broken is not None:
            with suppress(OSError):
                client.send(encode_error(header.message_id, header.command, self._broken.errno))


def _new_decoder() -> Decoder:
    return Decoder(max_message_size(MAX_DATA), MAX_FDS)


async def _read(
    source: MessageSocket, decoder: Decoder, take: Take, target: Outlet, back: Outlet | None = None
) -> None:
    """Take in messages until ``source`` ends. They go to ``target``, and answers, if there are any, go ``back``."""
    try:
        while count := await receive(source):
            decoder.feed(source.view[:count], source.take_fds())
            for message in decoder:
                with ReceivedFds(message.fds) as fds:
                    take(message, fds)
                await target.flush()
                if back is not None:
                    await back.flush_excess()
    finally:
        ReceivedFds(decoder.take_fds()).close()
