"""Requests that a proxy has passed on, and that change something here once they are answered."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from protocol import Header, ProtocolError

MAX_UNANSWERED = 1 << 16
"""As many as there are message ids."""

Settle = Callable[[bool], object]
"""Called once: with True where the request was accepted, with False where it was not, or never will be."""


class Unanswered:
    """By message id and command; of several with the same, the first is answered first."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], deque[Settle]] = {}
        self._count = 0

    def check_room(self) -> None:
        """Raise ProtocolError (EBUSY) where no further request can wait."""
        if self._count >= MAX_UNANSWERED:
            raise ProtocolError(errno.EBUSY, f"{MAX_UNANSWERED} requests wait for a reply")

    def add(self, header: Header, settle: Settle) -> None:
        """The request of ``header`` was passed on. One that wants no reply counts as accepted."""
        if header.no_reply:
            settle(True)
            return
        self._waiting.setdefault((header.message_id, header.command), deque()).append(settle)
        self._count += 1

    def take_reply(self, header: Header) -> None:
        """A reply came; most are to requests that change nothing here."""
        key = header.message_id, header.command
        waiting = self._waiting.get(key)
        if waiting is None:
            return
        settle = waiting.popleft()
        self._count -= 1
        if not waiting:
            del self._waiting[key]
        settle(not header.is_error)

    def close(self) -> None:
        """No reply will come."""
        for waiting in self._waiting.values():
            for settle in waiting:
                settle(False)
        self._waiting.clear()
