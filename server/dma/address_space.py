"""A reserved range of the process's address space that files are mapped into and taken out of."""

from __future__ import annotations

import ctypes
import mmap

from server.dma import libc

PAGE_SIZE = mmap.PAGESIZE
"""Bytes per page: the unit of DMA regions and of pins."""
PAGE_SHIFT = PAGE_SIZE.bit_length() - 1


class AddressSpace:
    """``size`` bytes of address space, aligned to ``align``, that read as zeros where no file is mapped.

    :attr:`view` covers all of it. Two things make a stale slice of it harmless, however long somebody keeps
    it: a range that is cleared is replaced by private zero pages, never left unmapped, so access neither
    faults nor reaches the file that was there; and the range is given back to the kernel only when the last
    slice is gone, because every slice keeps the underlying :class:`mmap.mmap` alive. Nothing is closed by
    hand.

    The reservation is MAP_NORESERVE: it costs one kernel mapping and no memory. Under
    vm.overcommit_memory=2 the kernel accounts it all the same, and a large one fails with ENOMEM.
    """

    __slots__ = ("_memory", "address", "size", "view")

    def __init__(self, size: int, align: int = PAGE_SIZE) -> None:
        """Raises OSError (ENOMEM) where the kernel does not give that much address space."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | libc.MAP_NORESERVE
        self._memory = mmap.mmap(-1, size + align - PAGE_SIZE, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        skip = -start % align
        self.address = start + skip
        self.size = size
        self.view = memoryview(self._memory)[skip : skip + size]

    def map_file(self, offset: int, length: int, *, fd: int, file_offset: int, writable: bool) -> None:
        """Map ``length`` bytes of ``fd`` at ``offset`` in this range. Raises OSError with nothing changed."""
        libc.map_file_at(self.address + offset, length, _prot(writable), fd, file_offset)

    def protect(self, offset: int, length: int, *, writable: bool) -> None:
        """Make mapped pages writable or read-only. Raises OSError."""
        libc.protect(self.address + offset, length, _prot(writable))

    def clear(self, offset: int, length: int) -> None:
        """Take files out of a range: it reads as zeros again.

        Raises OSError (ENOMEM) where that would split a mapping and the process may have no more
        (vm.max_map_count); the files stay mapped then.
        """
        libc.map_nothing_at(self.address + offset, length)


def _prot(writable: bool) -> int:
    return mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
