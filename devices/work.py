"""Deferred work: coroutines that ask their host for things, and know nothing of its event loop.

A coroutine of a device suspends by yielding one of the requests below; whoever drives it (a session, a test)
answers by sending the result in, or throws :class:`devices.contract.GuestMemoryError`. So devices need no event
loop, work inside C callbacks, and run through without suspending when guest memory is shared.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from types import coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """Asks for ``length`` bytes at ``address`` by DMA_READ; answered with bytes."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteMessage:
    """Asks for ``data`` to be written at ``address`` by DMA_WRITE; answered with None."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Offers the host a moment for other things; answered with None."""


Request = ReadMessage | WriteMessage | Pause

Work = Coroutine[Request, Any, Any]
"""A coroutine that awaits only what the host's memory and :func:`pause` give it."""

_PAUSE = Pause()


@coroutine
def pause() -> Generator[Request, Any, None]:
    """Let the host serve accesses that are waiting; await it between independent pieces of work."""
    yield _PAUSE


@coroutine
def read_message(address: int, length: int) -> Generator[Request, Any, bytes]:
    """Read guest memory that the client did not share (hosts use this to implement ``GuestMemory.read``)."""
    data: bytes = yield ReadMessage(address, length)
    return data


@coroutine
def write_message(address: int, data: bytes) -> Generator[Request, Any, None]:
    """Write guest memory that the client did not share."""
    yield WriteMessage(address, data)


def run_to_completion(work: Coroutine[Request, Any, Result]) -> Result:
    """Drive ``work`` that never needs a message: pauses are answered at once.

    Raises TypeError when it asks for a message, or awaits something that is not of this module.
    """
    try:
        while True:
            request = work.send(None)
            if not isinstance(request, Pause):
                work.close()
                raise TypeError(f"deferred work asked for {request!r}, which this driver cannot give")
    except StopIteration as stop:
        result: Result = stop.value
        return result
