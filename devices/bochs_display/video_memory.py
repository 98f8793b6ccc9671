"""The framebuffer: a file without a name, which clients map and the device reads."""

from __future__ import annotations

import fcntl
import os
import weakref

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ZEROS = memoryview(bytes(1 << 20))


class VideoMemory:
    """``size`` bytes, zeros at first, until :meth:`close` or until nobody refers to it. Raises OSError."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.shared_fd = os.memfd_create("bochs-display", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        """For clients. They can do nothing to its size; its flags and its position are theirs."""
        try:
            os.ftruncate(self.shared_fd, size)
            fcntl.fcntl(self.shared_fd, fcntl.F_ADD_SEALS, _SEALS)
            # Of their own, or a client's O_APPEND would move our writes.
            self._fd = os.open(f"/proc/self/fd/{self.shared_fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            os.close(self.shared_fd)
            raise
        self._close = weakref.finalize(self, _close_all, self.shared_fd, self._fd)

    def close(self) -> None:
        """Give the memory back; calling it again does nothing, and whatever else is called raises OSError."""
        self._close()
        self._fd = -1

    def read(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes, all of which are inside."""
        return os.pread(self._fd, count, offset)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` from ``offset`` on; all of that is inside."""
        os.preadv(self._fd, [target], offset)

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data``, all of which is inside. Raises OSError where the host is out of memory."""
        os.pwrite(self._fd, data, offset)

    def clear(self) -> None:
        """Make all of it zeros; costs time for what was ever written, and takes no memory for the rest."""
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but zeros from there on
                return
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
            for at in range(start, end, len(_ZEROS)):
                os.pwrite(self._fd, _ZEROS[: end - at], at)


def _close_all(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
