"""Standard output that somebody may stop reading."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from server.trace.reader import TraceReader


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
