"""A connection through a proxy that changes nothing, and records the messages in both directions.

All that it touches is the twin socket: it stands in that as well, so that the server's requests are recorded.
"""

from __future__ import annotations

import functools

import trio

from devices.contract import Log
from protocol import HEADER_SIZE, Command, Header
from protocol.pcapng import Direction
from server.fds import ReceivedFds
from server.native.message_socket import MessageSocket
from server.trace.mapped_areas import keep_looking
from server.trace.proxy.pump import Outlet, Pump, first_to_end, pass_on_end, receive
from server.trace.proxy.seen_areas import SeenAreas
from server.trace.proxy.spliced_twin import SplicedTwin, splice_twin
from server.trace.proxy.tap import MAX_PASSED_FDS, Tap
from server.trace.recorder import Recorder

MAX_VERSION = 64 << 10
"""Bytes of the longest reply to VERSION that is looked at."""


class TransparentRelay:
    """One client and its server."""

    def __init__(self, client: MessageSocket, server: MessageSocket, recorder: Recorder, log: Log) -> None:
        """The sockets stay the caller's."""
        self._client = client
        self._server = server
        self._to_client = Outlet(client)
        self._tap = functools.partial(Tap, recorder, log=log)
        self._areas = SeenAreas(recorder)
        self._server_tap = self._tap(Direction.OUTBOUND, areas=self._areas)
        self._from_client = Pump(client, Outlet(server), self._tap(Direction.INBOUND, areas=self._areas))

    async def run(self) -> str:
        """Serve until one side has ended, and say which. Raises as :meth:`Pump.run`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_looking, self._areas)
                from_server = functools.partial(self._pass_on_from_server, nursery)
                ended = await first_to_end(client=self._pass_on_from_client, server=from_server)
                nursery.cancel_scope.cancel()
        finally:
            self._areas.finish()
        return ended

    async def _pass_on_from_client(self) -> None:
        await self._from_client.run()
        self._areas.finish()  # before the server hears of the end, and forgets what was drawn
        await pass_on_end(self._client, self._server)

    async def _pass_on_from_server(self, nursery: trio.Nursery) -> None:
        if await self._pass_on_version(nursery):
            await Pump(self._server, self._to_client, self._server_tap).run()

    async def _pass_on_version(self, nursery: trio.Nursery) -> bool:
        """The server's first message, whole if it is what it should be. False where the server has ended."""
        data = bytearray()
        count = 1
        while count and (missing := _missing_of_version(data)):
            count = await receive(self._server, missing)
            data += self._server.view[:count]
        with ReceivedFds(self._server.take_fds()) as fds:
            self._server_tap.take(memoryview(data), fds.numbers)
            twin = splice_twin(Header.unpack(data), data[HEADER_SIZE:], fds.numbers) if count else None
            if twin is not None:
                nursery.start_soon(self._serve_twin, twin)
            self._to_client.send(bytes(data), fds.numbers if twin is None else twin.fds)
            if twin is not None:
                twin.handed_over()
        self._server_tap.record()
        await self._to_client.flush()
        return count > 0

    async def _serve_twin(self, twin: SplicedTwin) -> None:
        """Pass on what comes on the twin socket until one end of it is closed; the connection goes on without."""
        client = MessageSocket(twin.client, MAX_PASSED_FDS)
        server = MessageSocket(twin.server, MAX_PASSED_FDS)
        try:
            await first_to_end(
                client=Pump(client, Outlet(server), self._tap(Direction.INBOUND, twin=True)).run,
                server=Pump(server, Outlet(client), self._tap(Direction.OUTBOUND, twin=True)).run,
            )
        finally:
            client.close()
            server.close()
            twin.close()


def _missing_of_version(data: bytearray) -> int:
    """Bytes that are still missing of a reply to VERSION; 0 also where it is something else."""
    if len(data) < HEADER_SIZE:
        return HEADER_SIZE - len(data)
    header = Header.unpack(data)
    if header.command != Command.VERSION or not header.is_reply or header.size > MAX_VERSION:
        return 0
    return max(header.size - len(data), 0)
