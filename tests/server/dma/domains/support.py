"""What the kernel says of this process's memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile
from server.dma.domain import FileRun

_FRAME = (1 << 55) - 1
_PRESENT = 1 << 63
_LOOKS = 1000


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
        address = np.frombuffer(memory, np.uint8).ctypes.data
        found = frames_at(address, pages, lambda page: memory[page * PAGE_SIZE])
    assert os.fstat(fd).st_size >= pages * PAGE_SIZE
    return found


def frames_at(address: int, pages: int, touch: Callable[[int], object]) -> list[int]:
    """The page frame number of each page from ``address`` on, of which ``touch`` brings one to memory.

    What is there may be out of the page table for a moment, where the kernel would like to have it elsewhere.
    """
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for _ in range(_LOOKS):
            data = os.pread(pagemap.fileno(), pages * 8, address // PAGE_SIZE * 8)
            entries = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
            absent = [page for page, entry in enumerate(entries) if not entry & _PRESENT]
            if not absent:
                return [entry & _FRAME for entry in entries]
            for page in absent:
                touch(page)
    pytest.fail("the kernel does not say where a page is")
