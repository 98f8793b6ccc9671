"""Standard output that somebody may stop reading."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from server.trace.reader import TraceReader

POLL_SECONDS: Final = 0.25
"""Between two looks at a file that somebody records to, who keeps back what there is for twice as long."""


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output; the block ends early, and quietly, when its reader has gone (``| head``).

    Whatever else ends the block, what was written before is out when this returns.
    """
    try:
        try:
            yield sys.stdout
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would be tried again when Python exits, and complained about.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def pause(output: TextIO, source: int | None = None) -> None:
    """Wait a while, or until there is something to read from ``source``, or its end.

    Raises BrokenPipeError where nobody reads ``output`` any more.
    """
    poll = select.poll()
    out = -1
    with suppress(OSError):  # what is no file has no reader who could leave
        out = output.fileno()
        poll.register(out, 0)
    if source is not None:
        poll.register(source, select.POLLIN)
    for fd, events in poll.poll(1000 * POLL_SECONDS if source is None else None):
        if fd == out and events & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError


def warn_cut_short(reader: TraceReader) -> None:
    """Say on standard error that a file, which has been read, is empty, or ends in the middle of something."""
    if reader.empty:
        sys.stderr.write(
            f"vgpud: {reader.path}: empty: nothing was recorded, or nothing has been written yet\n"
        )
    if reader.cut_short:
        sys.stderr.write(
            f"vgpud: {reader.cut_file}: cut short: its last {reader.cut_short} bytes are a block without its end\n"
        )
