"""Pages of this process that stay where they are in physical memory, which mlock(2) does not promise.

A locked page may still migrate: compaction, memory hot-unplug and NUMA balancing move it. What a device is to reach at
its physical address must be pinned by the kernel for long (FOLL_LONGTERM), and the registered buffers of an io_uring
are (linux/io_uring.h, IORING_REGISTER_BUFFERS2; io_uring/rsrc.c). The ring itself is never used.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from struct import Struct
from typing import Final

from server.dma.domain import OutOfRuns
from server.dma.errors import DmaDomainUnavailable, DmaError

SYS_IO_URING_SETUP: Final = 425
SYS_IO_URING_REGISTER: Final = 427
IORING_UNREGISTER_BUFFERS: Final = 1
IORING_REGISTER_BUFFERS2: Final = 15
IORING_REGISTER_BUFFERS_UPDATE: Final = 16
IORING_RSRC_REGISTER_SPARSE: Final = 1

PARAMS_BYTES: Final = 120
RSRC_REGISTER: Final = Struct("=IIQQQ")
"""struct io_uring_rsrc_register: nr, flags, resv2, data, tags."""
RSRC_UPDATE2: Final = Struct("=IIQQII")
"""struct io_uring_rsrc_update2: offset, resv, data, tags, nr, resv2."""
IOVEC: Final = Struct("=QQ")

MAX_SLOTS: Final = 1 << 14
MAX_PIN_BYTES: Final = 1 << 30
"""What one registered buffer may have."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class PagePins:
    """Up to :data:`MAX_SLOTS` pinned ranges of this process's memory, each of up to :data:`MAX_PIN_BYTES`."""

    def __init__(self) -> None:
        """Raises DmaDomainUnavailable where the kernel has no io_uring for this process."""
        self._fd = -1
        params = ctypes.create_string_buffer(PARAMS_BYTES)
        try:
            self._fd = _call(SYS_IO_URING_SETUP, 1, params)
            register = RSRC_REGISTER.pack(MAX_SLOTS, IORING_RSRC_REGISTER_SPARSE, 0, 0, 0)
            self._register(IORING_REGISTER_BUFFERS2, register)
        except OSError as error:
            self.close()
            raise DmaDomainUnavailable(
                f"pages cannot be pinned without io_uring ({error.strerror}): it takes Linux 5.19 or later, "
                "sysctl kernel.io_uring_disabled=0, and a container that permits it"
            ) from error
        self._free = list(range(MAX_SLOTS - 1, -1, -1))
        self._stuck: list[int] = []

    @property
    def free_slots(self) -> int:
        """How many more ranges can be pinned."""
        return len(self._free)

    def pin(self, address: int, length: int) -> int:
        """Keep the pages of ``[address, address + length)`` where they are; returns the slot.

        The memory must be writable (the kernel pins for writing, FOLL_WRITE). Raises OSError: OutOfRuns (no slot),
        ENOMEM (over RLIMIT_MEMLOCK), EFAULT (not writable, not there, or of a file system whose pages it does not pin).
        """
        self._retry()
        if not self._free:
            raise OutOfRuns(MAX_SLOTS, "ranges of pinned pages in an io_uring")
        slot = self._free.pop()
        try:
            self._update(slot, address, length)
        except OSError as error:
            self._free.append(slot)
            if error.errno == errno.EFAULT:
                raise DmaError(
                    errno.EFAULT, "the kernel does not pin memory of this file: use a memfd"
                ) from error
            raise
        return slot

    def unpin(self, slot: int) -> None:
        """Let the pages of a slot move again; where the kernel cannot do so now, later. Never fails."""
        self._stuck.append(slot)
        self._retry()

    def close(self) -> None:
        """Let go of all of them. Calling it again does nothing."""
        if self._fd >= 0:
            # A ring that is closed with buffers lets go of them some time later.
            with contextlib.suppress(OSError):
                _call(SYS_IO_URING_REGISTER, self._fd, IORING_UNREGISTER_BUFFERS, None, 0)
            os.close(self._fd)
            self._fd = -1

    def _retry(self) -> None:
        stuck, self._stuck = self._stuck, []
        for slot in stuck:
            try:
                self._update(slot, 0, 0)
            except OSError:
                self._stuck.append(slot)
            else:
                self._free.append(slot)

    def _update(self, slot: int, address: int, length: int) -> None:
        vector = ctypes.create_string_buffer(IOVEC.pack(address, length), IOVEC.size)
        update = RSRC_UPDATE2.pack(slot, 0, ctypes.addressof(vector), 0, 1, 0)
        self._register(IORING_REGISTER_BUFFERS_UPDATE, update)

    def _register(self, operation: int, argument: bytes) -> None:
        _call(SYS_IO_URING_REGISTER, self._fd, operation, argument, len(argument))


def _call(number: int, *arguments: object) -> int:
    result: int = _syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
