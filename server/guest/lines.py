"""Text that arrives in pieces, as lines that can be waited for."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable

import trio
from trio.abc import ReceiveStream

from server.guest.errors import GuestError

TAIL = 20
"""How many lines are shown of a log when something went wrong."""


class LineLog:
    """All lines that a stream has brought so far. Feed it with :meth:`read_from` in a task of its own."""

    def __init__(self, name: str) -> None:
        """Begin empty; ``name`` says in errors whose lines these are."""
        self.lines: list[str] = []
        self.ended = False
        self._name = name
        self._news = trio.lowlevel.ParkingLot()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._partial = ""

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines, an unfinished one included."""
        lines = [*self.lines, self._partial] if self._partial else self.lines
        return tuple(lines[-TAIL:])

    async def read_from(self, stream: ReceiveStream) -> None:
        """Take in ``stream`` until it ends."""
        try:
            async for chunk in stream:
                self.feed(bytes(chunk))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended = True
            self._news.unpark_all()

    def feed(self, chunk: bytes) -> None:
        """Take in ``chunk``; lines end with a newline, and carriage returns are dropped."""
        *whole, self._partial = (self._partial + self._decode(chunk).replace("\r", "")).split("\n")
        if whole:
            self.lines += whole
            self._news.unpark_all()

    async def wait_for(
        self, wanted: str | Callable[[str], bool], within: float = math.inf, since: int = 0
    ) -> tuple[int, str]:
        """Wait for a line that contains ``wanted``, or for which it is true: its number, and the line.

        Looks at lines from number ``since`` on, which may be there already. Raises :class:`GuestError` when
        the stream ends first or ``within`` seconds pass.
        """
        accept: Callable[[str], bool] = (lambda line: wanted in line) if isinstance(wanted, str) else wanted
        with trio.move_on_after(within):
            while True:
                for number in range(since, len(self.lines)):
                    if accept(self.lines[number]):
                        return number, self.lines[number]
                since = max(since, len(self.lines))
                if self.ended:
                    raise GuestError(f"{self._name} ended: {self.last_words}", self.tail)
                await self._news.park()
        described = repr(wanted) if isinstance(wanted, str) else "the line waited for"
        raise GuestError(
            f"{self._name}: no {described} within {within:.0f} s; the last line is: {self.last_words}",
            self.tail,
        )

    @property
    def last_words(self) -> str:
        """The last line with something in it."""
        return next((line for line in reversed(self.tail) if line.strip()), "nothing was printed")
