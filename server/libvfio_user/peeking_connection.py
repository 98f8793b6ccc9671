"""The library reads the client's messages from the client's socket.

It reads a message with blocking calls, and is lost where one comes in pieces. So each message is looked at before the
library may read it: it has to be whole and without fds, of a kind that the library serves as it should be, and the
client must have room for the reply. Everything else is read here.
"""

from __future__ import annotations

import trio

from protocol import HEADER, HEADER_SIZE, Decoder, Handshake
from server.libvfio_user.connection import LIBRARY_COMMANDS, LibraryConnection, is_for_library
from server.libvfio_user.peeking_socket import PeekingSocket
from server.native.client_messages import ClientMessages
from server.native.message_socket import RECEIVE_SIZE
from server.session import Session


class PeekingConnection(LibraryConnection):
    """Looks at messages, and leaves them to the library."""

    def __init__(
        self,
        main: PeekingSocket,
        decoder: Decoder,
        handshake: Handshake,
        session: Session,
        client: ClientMessages,
    ) -> None:
        super().__init__(main, decoder, handshake, session, client)
        self._peeking = main

    async def _take(self, count: int) -> None:
        """Serve what was looked at: ``count`` bytes."""
        main, view = self._peeking, self._peeking.peeked
        if self._decoder.in_message or main.fds_waiting:
            await self._serve_here(self._decoder.missing)
            return
        done = 0
        while count - done >= HEADER_SIZE:
            _, command, size, flags, _ = HEADER.unpack_from(view, done)
            if not is_for_library(command, size, flags, view[done + HEADER_SIZE : count]):
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

    async def _serve_here(self, size: int) -> None:
        """Read what there is of a message of ``size`` bytes, and serve it if it is whole."""
        count = self._peeking.take(min(size, RECEIVE_SIZE))
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
