"""What the kernel says of this process's memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile
from server.dma.domain import FileRun

_FRAME = (1 << 55) - 1


def run(backing: BackingFile, page: int, count: int = 1, *, may_write: bool = True) -> FileRun:
    """``count`` pages of a file from ``page`` on."""
    return FileRun(backing, page * PAGE_SIZE, count * PAGE_SIZE, may_write)


def pinned_pages() -> int:
    """How many pages the kernel has pinned for this process (proc_pid_status(5), VmPin)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmPin:"))
    return kilobytes * 1024 // PAGE_SIZE


def frames(fd: int, pages: int) -> list[int]:
    """The page frame number of each of the first ``pages`` pages of a file, seen through a mapping of its own."""
    with mmap.mmap(fd, pages * PAGE_SIZE, prot=mmap.PROT_READ) as memory:
        for page in range(pages):
            memory[page * PAGE_SIZE]
        address = np.frombuffer(memory, np.uint8).ctypes.data
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(address // PAGE_SIZE * 8)
            data = pagemap.read(pages * 8)
    assert os.fstat(fd).st_size >= pages * PAGE_SIZE
    return [int.from_bytes(data[at : at + 8], "little") & _FRAME for at in range(0, len(data), 8)]
