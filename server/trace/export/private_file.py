"""Files with what was in a guest's memory or on its screen: for their owner alone, as traces are."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_private(path: Path) -> BinaryIO:
    """Open a file to write it anew, also where it was there and others could read it. Raises OSError."""
    file = open(path, "wb", opener=_private)  # noqa: SIM115 - the caller closes it
    try:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.fchmod(file.fileno(), stat.S_IMODE(mode) & stat.S_IRWXU)
    except OSError:
        file.close()
        raise
    return file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
