"""Differences between two traces as lines, like a unified diff: ``-`` is only in A, ``+`` only in B.

A message that is in both with other values is a pair of lines with ``~``, that of A first; behind that of B stands
what differs, as ``[data: 0x00 -> 0x01]``.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TextIO

from server.trace.diff.meaning import differences
from server.trace.diff.sides import Item
from server.trace.show.names import printable


class Report:
    """Writes what differs as it is told, with ``context`` equal messages around."""

    def __init__(self, output: TextIO, context: int, a: Path, b: Path) -> None:
        self.differs = False
        self.equal_messages = 0
        self.changed_messages = 0
        self.only_messages = {True: 0, False: 0}
        """Of A (True) and of B."""
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
        self.equal_messages += a.message is not None
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
        self.changed_messages += 1
        self._begin()
        self._write("~", a)
        what = "" if a.message is None or b.message is None else "; ".join(differences(a.message, b.message))
        self._write("~", b, f"  [{what}]")
        self._passed(a, in_a=True)
        self._passed(b, in_a=False)

    def only(self, item: Item, *, in_a: bool) -> None:
        """The next of one is not in the other."""
        self.only_messages[in_a] += item.message is not None
        self._begin()
        self._write("-" if in_a else "+", item)
        self._passed(item, in_a=in_a)

    def note(self, text: str) -> None:
        """Say something about the differences that follow."""
        self._begin()
        self._output.write(f"# {text}\n")

    def summary(self) -> None:
        """The last line."""
        self._output.write(
            f"{self.equal_messages} messages equal, {self.changed_messages} differ, "
            f"{self.only_messages[True]} only in A, {self.only_messages[False]} only in B\n"
        )

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
