"""Whether files in a folder are memory: what it means to share them depends on it."""

from __future__ import annotations

import os
from pathlib import Path

_IN_MEMORY = ("tmpfs", "hugetlbfs", "ramfs")
_MOUNTS = Path("/proc/self/mountinfo")


def is_folder(path: str) -> bool:
    """Whether it is a folder, in which QEMU makes a file and unlinks it at once; else ``path`` is the file."""
    return Path(path).is_dir()


def file_system_in_memory(path: str) -> bool:
    """Whether ``path`` is a folder on a file system that keeps its files in memory (proc_pid_mountinfo(5))."""
    if not is_folder(path):
        return False
    device = Path(path).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text(errors="replace").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0] in _IN_MEMORY
    return False
