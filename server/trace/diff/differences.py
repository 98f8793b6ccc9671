"""Differences between two traces as lines, like a unified diff: ``-`` is only in A, ``+`` only in B.

A message that is in both with other values is a pair of lines with ``~``, that of A first; behind that of B stands
what differs, as ``[data: 0x00 -> 0x01]``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from server.trace.diff.meaning import data_differences, differences
from server.trace.diff.sides import Item
from server.trace.text.names import printable
from server.trace.text.value_text import plural


@dataclass(slots=True)
class Counts:
    """How many are the same in both, and how many are not."""

    equal: int = 0
    changed: int = 0
    only: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """In A (True) and in B."""

    def text(self, what: str) -> str:
        """``5 messages equal, 1 differ, 0 only in A, 2 only in B``."""
        return (
            f"{plural(self.equal, what)} equal, {self.changed} differ, "
            f"{self.only[True]} only in A, {self.only[False]} only in B"
        )


class Report:
    """Writes what differs as it is told, with ``context`` equal messages around."""

    def __init__(self, output: TextIO, context: int, a: Path, b: Path, *, events: bool = False) -> None:
        """``events``: those are compared, too."""
        self.differs = False
        self.messages = Counts()
        self.events = Counts()
        self._events = events
        self._output = output
        self._context = context
        self._header = [f"--- {a}", f"+++ {b}"]
        self._before: deque[tuple[Item, Item]] = deque(maxlen=context)
        self._behind = 0
        """Equal messages that are still to be shown behind the latest difference."""
        self._apart = True
        """Whether something that is not shown is between the latest line and what is in ``_before``."""
        self._next = {True: 1, False: 1}
        """Numbers of the next messages."""

    def equal(self, a: Item, b: Item) -> None:
        """The next of both are equal."""
        self.messages.equal += a.message is not None
        self.events.equal += a.event is not None
        if self._behind:
            self._behind -= 1
            self._write(" ", a)
        else:
            self._apart = self._apart or len(self._before) == self._context
            self._before.append((a, b))
        self._passed(a, in_a=True)
        self._passed(b, in_a=False)

    def changed(self, a: Item, b: Item) -> None:
        """The next of both are one message with other values."""
        self.messages.changed += a.event is None
        self.events.changed += a.event is not None
        self._begin()
        self._write("~", a)
        self._write("~", b, f"  [{'; '.join(_differences(a, b))}]")
        self._passed(a, in_a=True)
        self._passed(b, in_a=False)

    def only(self, item: Item, *, in_a: bool) -> None:
        """The next of one is not in the other."""
        self.messages.only[in_a] += item.message is not None
        self.events.only[in_a] += item.event is not None
        self._begin()
        self._write("-" if in_a else "+", item)
        self._passed(item, in_a=in_a)

    def note(self, text: str) -> None:
        """Say something about the differences that follow."""
        self._begin()
        self._output.write(f"# {text}\n")

    def summary(self) -> None:
        """The last line, or lines."""
        self._output.write(self.messages.text("message") + "\n")
        if self._events:
            self._output.write(self.events.text("event") + "\n")

    def _begin(self) -> None:
        """A difference: show what is before it."""
        self.differs = True
        for line in self._header:
            self._output.write(printable(line) + "\n")
        self._header = []
        if self._apart:
            a, b = self._numbers()
            self._output.write(f"@@ message {a} of A, {b} of B @@\n")
        for item, _ in self._before:
            self._write(" ", item)
        self._before.clear()
        self._behind = self._context
        self._apart = False

    def _numbers(self) -> tuple[int, int]:
        """Those of the first messages that are shown next."""
        for a, b in self._before:
            if a.message is not None and b.message is not None:
                return a.message.message.number, b.message.message.number
        return self._next[True], self._next[False]

    def _passed(self, item: Item, *, in_a: bool) -> None:
        if item.message is not None:
            self._next[in_a] = item.message.message.number + 1

    def _write(self, sign: str, item: Item, behind: str = "") -> None:
        self._output.write(printable(f"{sign}{item.line()}{behind}") + "\n")


def _differences(a: Item, b: Item) -> Iterable[str]:
    if a.message and b.message:
        return differences(a.message, b.message)
    if a.event and b.event:
        return data_differences(a.event.data(), b.event.data())
    return ["other bytes"]
