"""Interrupts by way of a proxy: the server gets eventfds of the proxy's, which passes on what they say."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from protocol import SetIrqs
from server.fds import ReceivedFds
from server.interrupts import EventFd

_EVENTS = select.EPOLLIN | select.EPOLLET
"""Each signal is an event of its own, so nobody has to read: a server could make that block."""


@dataclass(eq=False, slots=True)
class _Relay:
    index: int
    vector: int
    fd: int
    """The server's eventfd."""
    client: EventFd


@dataclass(eq=False, slots=True)
class IrqChange:
    """What a SET_IRQS will change, once the server has accepted it."""

    request: SetIrqs
    relays: list[_Relay] = field(default_factory=list)

    @property
    def fds(self) -> Sequence[int]:
        """The eventfds for the server."""
        return [relay.fd for relay in self.relays]


class RelayedInterrupts:
    """The interrupts of one client."""

    def __init__(self, told: Callable[[int, int], object]) -> None:
        """``told`` hears of each interrupt that the client is told of: IRQ index and vector."""
        self._told = told
        self._epoll = select.epoll()
        self._relays: dict[int, _Relay] = {}
        self._vectors: dict[tuple[int, int], _Relay] = {}

    async def serve(self) -> None:
        """Pass on interrupts until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.deliver()

    def deliver(self) -> None:
        """Pass on what the server has signalled so far."""
        if not self._relays:
            return
        for fd, _ in self._epoll.poll(0, len(self._relays)):
            relay = self._relays[fd]
            relay.client.signal()
            self._told(relay.index, relay.vector)

    def prepare(self, request: SetIrqs, fds: ReceivedFds) -> IrqChange:
        """Make eventfds for the server in place of ``fds``, the client's, of which copies are kept.

        They work from now on. Raises ProtocolError (EINVAL) where one of ``fds`` is something else, and OSError where
        no more fds are to be had, with nothing changed.
        """
        change = IrqChange(request)
        try:
            with fds.duplicates() as copies:
                for vector in range(request.start, request.start + len(fds)):
                    self._add(change, vector, copies)
        except BaseException:
            self._drop(change.relays)
            raise
        return change

    def settle(self, change: IrqChange, accepted: bool) -> None:
        """The server has done what was asked, or refused it."""
        if not accepted:
            self._drop(change.relays)
            return
        request = change.request
        last = request.start + request.count
        replaced = [
            key
            for key in self._vectors
            if key[0] == request.index and (request.disables or request.start <= key[1] < last)
        ]
        self._drop([self._vectors.pop(key) for key in replaced])
        for relay in change.relays:
            self._vectors[relay.index, relay.vector] = relay

    def close(self) -> None:
        """Close every eventfd."""
        self._drop(list(self._relays.values()))
        self._vectors.clear()
        self._epoll.close()

    def _add(self, change: IrqChange, vector: int, fds: ReceivedFds) -> None:
        taken = fds.take()
        assert taken is not None  # noqa: S101 - there are as many as vectors
        client = EventFd(taken)
        try:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            client.close()
            raise
        relay = self._relays[fd] = _Relay(change.request.index, vector, fd, client)
        change.relays.append(relay)
        self._epoll.register(fd, _EVENTS)

    def _drop(self, relays: Sequence[_Relay]) -> None:
        for relay in relays:
            del self._relays[relay.fd]
            with suppress(FileNotFoundError):  # where it could not be registered
                self._epoll.unregister(relay.fd)
            os.close(relay.fd)
            relay.client.close()
