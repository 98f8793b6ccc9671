"""How many more instances of a type this host has memory for."""

from __future__ import annotations

from pathlib import Path

from server.instances.errors import InstanceError

MEMINFO = Path("/proc/meminfo")


def memory_available(meminfo: Path = MEMINFO) -> int:
    """What the kernel estimates can be had without swapping, in bytes: MemAvailable (proc(5)). Raises InstanceError."""
    return _bytes(meminfo, "MemAvailable")


def memory_total(meminfo: Path = MEMINFO) -> int:
    """The memory of this host in bytes: MemTotal (proc(5)). Raises InstanceError."""
    return _bytes(meminfo, "MemTotal")


def _bytes(meminfo: Path, name: str) -> int:
    try:
        lines = meminfo.read_text().splitlines()
        (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
        return int(kibibytes) << 10
    except (OSError, ValueError, IndexError) as error:
        raise InstanceError(f"{meminfo}: no {name} there; mount /proc") from error


def available_instances(video_memory: int, available: int, promised: int) -> int:
    """How many instances fit that may take ``video_memory`` bytes each.

    ``available`` is what the host has, ``promised`` what is promised to the instances that are defined. What of it
    they have taken already counts twice, so this is never too many.
    """
    return max(0, available - promised) // video_memory
