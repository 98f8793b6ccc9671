"""Pipes through which nothing is ever sent: they tell a process that the last one is gone that it has to end with."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_F_SETSIG = 10
"""linux/fcntl.h"""


@contextmanager
def lifeline() -> Iterator[tuple[int, int]]:
    """The reading end, for the process that is to be told, and the writing end, for those with whom it has to end.

    PR_SET_PDEATHSIG knows one parent; this knows as many processes as inherit an fd.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def end_with_lifeline(reading: int) -> None:
    """In a child: get SIGTERM when the last process that has the writing end is gone (fcntl(2), F_SETSIG).

    This child has that end too, until it becomes the other program: so it is told, also if the others just went.
    """
    fcntl.fcntl(reading, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reading, _F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
