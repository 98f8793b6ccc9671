"""How long steps tell what they are doing."""

from __future__ import annotations

import sys
from collections.abc import Callable

Report = Callable[[str], None]
"""Takes one line of progress, without its newline."""

MEBIBYTE = 1 << 20


def to_stderr(line: str) -> None:
    """Report on standard error, where it mixes with no output that another program may read."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def to_nowhere(line: str) -> None:
    """Report nothing."""


def mebibytes(size: int) -> str:
    """Write ``size`` bytes in MiB for people to read."""
    return f"{size / MEBIBYTE:.0f} MiB"
