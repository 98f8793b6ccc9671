"""The fds of the process that runs the tests."""

from __future__ import annotations

import gc
from pathlib import Path


def open_fds() -> int:
    """How many there are."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settled_fds() -> int:
    """How many there are once what earlier tests have left to the collector is gone: for what is compared exactly."""
    gc.collect()
    return open_fds()
