"""The programs that a guest runs: busybox, and dynamically linked ones with their libraries."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from server.guest.elf import ElfFile
from server.guest.errors import GuestError
from server.guest.packages import GUEST, LIBRARIES, unpacked
from server.guest.progress import Report, to_stderr

_SYSTEM_LIBRARIES = tuple(
    Path(folder)
    for folder in (
        "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """An x86-64 program, and the folders to look for its libraries in."""

    path: Path
    library_folders: tuple[Path, ...] = _SYSTEM_LIBRARIES


@dataclass(frozen=True, slots=True)
class GuestPrograms:
    """What every guest carries: a static busybox; and libdrm's modetest."""

    busybox: Path
    modetest: Program


def find_programs(report: Report = to_stderr) -> GuestPrograms:
    """Return the programs of Debian's packages, which are downloaded once, else those on PATH.

    Raises :class:`GuestError` where they are neither to be had nor installed.
    """
    try:
        root = unpacked(GUEST, report)
    except GuestError as reason:
        return GuestPrograms(_static_busybox(reason), Program(_on_path("modetest", reason)))
    return GuestPrograms(root / "usr/bin/busybox", Program(root / "usr/bin/modetest", (root / LIBRARIES,)))


def applets(busybox: Path) -> list[str]:
    """Return the names of the commands that ``busybox`` is."""
    listing = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True).stdout
    return [name for name in listing.split() if name != "busybox"]


def _on_path(name: str, reason: GuestError) -> Path:
    found = shutil.which(name)
    if found is None:
        raise GuestError(f"{name} is not installed, and cannot be downloaded: {reason}")
    return Path(found)


def _static_busybox(reason: GuestError) -> Path:
    path = _on_path("busybox", reason)
    if ElfFile(path.read_bytes()).interpreter is not None:
        raise GuestError(f"{path} is not a static program: install busybox-static")
    return path
