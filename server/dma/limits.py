"""How much of its memory a client's device may keep mapped, and where the number comes from."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final, NamedTuple

from devices.registry import size

DEFAULT_MAX_PINNED: Final = 4 << 30
"""Where nothing is locked in memory: the pages are the client's anyway, and only take entries of a page table."""
MEMLOCK: Final = "memlock"
_CAP_IPC_LOCK: Final = 14


class PinLimits(NamedTuple):
    """Bounds on what one client's device keeps mapped, in bytes.

    ``max_pinned`` bounds all mapped pages together, None is no limit; ``retain`` is how many may stay mapped
    that nobody pins. ``limited_by`` names the first one's source to who runs into it.
    """

    max_pinned: int | None = None
    retain: int = 0
    limited_by: str = "--max-pinned"


NO_LIMITS: Final = PinLimits()
DEFAULT_LIMITS: Final = PinLimits(DEFAULT_MAX_PINNED)


def pin_limits(max_pinned: str | None, retain: str, *, locks_memory: bool) -> PinLimits:
    """The limits that the command line asks for. Raises ValueError, whose text names the option.

    Memory that is locked (``locks_memory``) is limited by RLIMIT_MEMLOCK unless something else is said, as it is for
    any other program.
    """
    limit: int | None
    source = "--max-pinned"
    if max_pinned == MEMLOCK or (max_pinned is None and locks_memory):
        limit, source = memlock_limit(), "RLIMIT_MEMLOCK"
    elif max_pinned is None:
        limit = DEFAULT_MAX_PINNED
    else:
        limit = _size(max_pinned, "--max-pinned")
    retained = _size(retain, "--dma-retain")
    if limit is not None and retained > limit:
        raise ValueError(f"--dma-retain is more than {source} permits to be mapped: {limit} bytes")
    return PinLimits(limit, retained, source)


def memlock_limit() -> int | None:
    """What this process may lock in memory: RLIMIT_MEMLOCK, or None with CAP_IPC_LOCK (capabilities(7))."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    if limit == resource.RLIM_INFINITY or int(effective, 16) >> _CAP_IPC_LOCK & 1:
        return None
    return limit


def _size(text: str, option: str) -> int:
    try:
        return size(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
