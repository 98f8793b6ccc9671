"""How many clients of the control socket are served at a time, and who goes where others wait."""

from __future__ import annotations

from contextlib import suppress

import trio

MAX_CLIENTS = 16
"""Clients at a time; more wait in the kernel's backlog."""
CROWDED_SECONDS = 1.0
"""How long a client is sure of its place since it came, or was last answered: so short that `vgpud status`, which waits
for 10 s, is answered behind a backlog full of clients that say nothing."""


class Places:
    """The places of clients. One task takes them, before it accepts: who has none costs no fd.

    Where all are taken and somebody waits, whoever asked longest ago loses its place.
    """

    def __init__(self) -> None:
        self._free = trio.Semaphore(MAX_CLIENTS)
        self._since: dict[trio.CancelScope, float] = {}
        """When each came, or was answered; longest ago first."""

    async def take(self, listener: trio.socket.SocketType) -> trio.CancelScope:
        """Wait for a place for who comes next to ``listener``: a scope to serve it in, to :meth:`leave` at its end."""
        place = trio.CancelScope()
        while True:
            with suppress(trio.WouldBlock):
                self._free.acquire_nowait()
                self.keep(place)
                return place
            await trio.lowlevel.wait_readable(listener)
            if self._free.value:
                continue
            oldest, since = next(iter(self._since.items()))
            with trio.move_on_at(since + CROWDED_SECONDS):
                await self._some_are_free()
            if not self._free.value and self._since.get(oldest) == since:
                oldest.cancel()
                await self._some_are_free()

    async def _some_are_free(self) -> None:
        async with self._free:
            return

    def keep(self, place: trio.CancelScope) -> None:
        """Its client has come, or was answered."""
        self._since.pop(place, None)
        self._since[place] = trio.current_time()

    def leave(self, place: trio.CancelScope) -> None:
        """Its client has gone."""
        del self._since[place]
        self._free.release()
