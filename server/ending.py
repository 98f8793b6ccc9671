"""How a server ends that is told to: it cleans up, however often it is told meanwhile.

A terminal that goes says so twice, the shell to its jobs and the kernel to the foreground; and QEMU's end is two things
at once for the server that is its alone: its client has left, and nobody needs it any more.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import trio

from server.stop_signals import stop_signals

_DEADLY = (signal.SIGTERM, signal.SIGHUP)
"""Those that would leave everything as it is. SIGINT raises KeyboardInterrupt, behind which blocks clean up."""


class Ending:
    """Around all that has to be cleaned up. Before a server serves, signals do what they do without this."""

    def __init__(self) -> None:
        self._ends = False
        self._caught: list[signal.Signals] = []

    def __enter__(self) -> Self:
        for number in _DEADLY:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._told)
                self._caught.append(number)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._ends:  # and otherwise they do nothing for as long as the process lasts
            for number in self._caught:
                signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def signals(self) -> Iterator[AsyncIterator[int]]:
        """The signals that say stop, while the server serves; the end of the block is the beginning of its end."""
        with trio.open_signal_receiver(*stop_signals()) as signals:
            try:
                yield signals
            finally:
                self._ends = True

    def _told(self, number: int, _frame: FrameType | None) -> None:
        if not self._ends:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
