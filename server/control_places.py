"""How many clients of the control socket are served at a time, and who goes where others wait."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

MAX_CLIENTS = 16
"""Clients at a time; more wait in the kernel's backlog."""
CROWDED_SECONDS = 1.0
"""How long a client is sure of its place since it came, or was last answered: so short that `vgpud status`, which waits
for 10 s, is answered behind a backlog full of clients that say nothing."""


class Places:
    """The places of clients. One task takes them, before it accepts: who has none costs no fd.

    Where all are taken and somebody waits, whoever asked longest ago loses its place. Who is being answered keeps it.
    """

    def __init__(self) -> None:
        self._free = MAX_CLIENTS
        self._since: dict[trio.CancelScope, float] = {}
        """When each came, or was answered, longest ago first; without those that are being answered."""
        self._changes = trio.lowlevel.ParkingLot()
        """Who waits for the two above to change."""

    async def take(self, listener: trio.socket.SocketType) -> trio.CancelScope:
        """Wait for a place for who comes next to ``listener``: a scope to serve it in, to :meth:`leave` at its end."""
        while not self._free:
            await trio.lowlevel.wait_readable(listener)
            if not self._free:
                await self._crowded()
        self._free -= 1
        place = trio.CancelScope()
        self.keep(place)
        return place

    async def _crowded(self) -> None:
        """Wait for a change; where none comes in time, who has said nothing for longest goes."""
        oldest, since = next(iter(self._since.items()), (None, math.inf))
        with trio.move_on_at(since + CROWDED_SECONDS):
            await self._changes.park()
            return
        if oldest is not None and self._since.get(oldest) == since:
            oldest.cancel()
            while not self._free:
                await self._changes.park()

    def keep(self, place: trio.CancelScope) -> None:
        """Its client has come, or was answered."""
        self._since.pop(place, None)
        self._since[place] = trio.current_time()
        self._changes.unpark_all()

    @contextmanager
    def answering(self, place: trio.CancelScope) -> Iterator[None]:
        """Its client has asked, and is being answered: however long that takes, it does not go for another."""
        self._since.pop(place, None)
        try:
            yield
        finally:
            self.keep(place)

    def leave(self, place: trio.CancelScope) -> None:
        """Its client has gone."""
        del self._since[place]
        self._free += 1
        self._changes.unpark_all()
