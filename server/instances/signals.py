"""Signals that are to end this process, but not before it has cleaned up."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from server.stop_signals import STOP_SIGNALS


class NoticedSignals:
    """Readable from the moment when a signal came. Made by :func:`noticed`."""

    def __init__(self, reader: int) -> None:
        self._reader = reader

    def fileno(self) -> int:
        """For poll(2)."""
        return self._reader


@contextmanager
def noticed(numbers: Collection[signal.Signals] = STOP_SIGNALS) -> Iterator[NoticedSignals]:
    """Note these signals while the block lasts, in the main thread; behind it the first that came does what it does.

    Those that are ignored are left alone (nohup(1)). A handler that raised could leave a process that nobody knows of,
    where it comes while that is being started.
    """
    came: list[int] = []
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def note(number: int, _frame: FrameType | None) -> None:
        if not came:
            os.write(writer, b"\0")
        came.append(number)

    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield NoticedSignals(reader)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
        if came:
            signal.raise_signal(signal.Signals(came[0]))
