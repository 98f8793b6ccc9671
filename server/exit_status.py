"""How a command ends: its exit status, and one line where it cannot do what it was asked to."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TextIO

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""What a shell says of a program that Ctrl-C has ended."""


def fail(reason: object) -> int:
    """Say in one line what is wrong, and give the exit status for it."""
    try:
        sys.stderr.write(f"vgpud: {reason}\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)  # nobody is there to be told, and Python would try again when it exits
    return EXIT_FAILURE


def exit_status_of(command: Callable[[], int]) -> int:
    """Run a command with its output, and give its exit status: no Ctrl-C, full disk or reader that left is a traceback.

    Where who reads the output has seen enough, the status is the command's own.
    """
    _open_standard_streams()
    try:
        status = command()
    except SystemExit:  # argparse, which has printed help
        if failure := _flush(0):
            return failure
        raise
    except BaseException as error:
        return _status_of(error)
    return _flush(status)


def _status_of(error: BaseException) -> int:
    """Raises ``error`` where it is none of those that a command may end with."""
    causes = list(_causes(error))
    if all(isinstance(cause, KeyboardInterrupt) for cause in causes):
        fail("interrupted")
        return EXIT_INTERRUPTED
    first = causes[0]
    if not all(isinstance(cause, OSError) for cause in causes) or not isinstance(first, OSError):
        raise error
    if first.errno == errno.EPIPE and _reader_has_gone():
        _discard(sys.stdout)
        return 0
    where = "" if first.filename is None else f"{first.filename}: "
    status = fail(f"{where}{first.strerror or first}")
    return _flush(status)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What is in a group, which is how tasks fail, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _causes(member)
    else:
        yield error


def _flush(status: int) -> int:
    """Write what is buffered, as nothing that comes later can say that it was lost."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if error.errno != errno.EPIPE:
            return fail(f"standard output: {error.strerror}")
    return status


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    with suppress(OSError):
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    return False


def _discard(stream: TextIO) -> None:
    """Lose what a stream has not written, and what is written to it from now on."""
    with suppress(OSError):
        fd = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, fd)
        os.close(null)


def _open_standard_streams() -> None:
    """Have something at fds 0 to 2: a socket that gets such a number would be taken for the terminal."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # always the lowest number that is free
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - an fd, for the whole process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
