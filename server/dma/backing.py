"""The files behind DMA regions: one fd and one mapping per file, however many messages name it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable

from server.dma import libc
from server.dma.address_space import PAGE_SIZE, AddressSpace
from server.dma.errors import DmaError

MAX_FILES = 1024
"""Different files that one client may back its memory with; VMMs need one per memory backend."""

_HUGETLBFS_MAGIC = 0x958458F6
_O_PATH = os.O_PATH
_F_SEAL_FUTURE_WRITE = 0x10
_WRITE_SEALS = fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE

_Key = tuple[int, int, bool]


class BackingFile:
    """A client's file, open and mapped as a whole.

    ``memory[prot]`` is the file for a :class:`devices.contract.Prot`: read-only for READ. ``page_size`` is
    more than a page on hugetlbfs: the kernel maps such files only in these units.

    A file that is not ``sealed`` against shrinking is a trust in the client: when it truncates the file,
    the next access beyond the new end kills this process with SIGBUS. The size is checked at each map and
    at each pin, which makes an accident unlikely but cannot stop a client that means it.
    """

    __slots__ = ("fd", "key", "memory", "page_size", "sealed", "size", "space", "users", "writable")

    def __init__(self, fd: int, key: _Key, *, writable: bool, page_size: int, sealed: bool) -> None:
        self.fd = fd
        self.key = key
        self.writable = writable
        self.page_size = page_size
        self.sealed = sealed
        self.users = 0
        self.size = 0

    def grow(self, file_size: int) -> None:
        """Map the file anew, as long as it is now; views of the old mapping stay good. Raises OSError."""
        size = file_size - file_size % self.page_size
        space = AddressSpace(size, self.page_size)
        space.map_file(0, size, fd=self.fd, file_offset=0, writable=self.writable)
        readonly = space.view.toreadonly()
        full = space.view if self.writable else readonly
        self.space = space
        self.size = size
        self.memory = (readonly, readonly, full, full)

    def check_writable(self, *, writable: bool) -> None:
        """Raise DmaError (EPERM) where a seal forbids the writing that is asked for."""
        if writable and not self.writable:
            raise DmaError(errno.EPERM, "the DMA fd is sealed against writing")

    def check_size(self, end: int) -> None:
        """Raise DmaError (EFAULT) where the client has truncated the file below ``end`` bytes."""
        if not self.sealed and os.fstat(self.fd).st_size < end:
            raise DmaError(errno.EFAULT, "the client truncated the file behind its memory")


class BackingFiles:
    """The files of one client by (device, inode).

    The same file opened read-only and read-write counts as two, since a mapping cannot exceed its fd's
    access. ``on_unsealed`` is called once for every file that could not be sealed against shrinking, however often the
    client takes it away and brings it back; of ``max_files`` at most.
    """

    def __init__(self, on_unsealed: Callable[[BackingFile], None], max_files: int = MAX_FILES) -> None:
        self._files: dict[_Key, BackingFile] = {}
        self._on_unsealed = on_unsealed
        self._unsealed: set[tuple[int, int]] = set()
        """Device and inode of those that it was called for."""
        self._max_files = max_files

    def __len__(self) -> int:
        return len(self._files)

    def acquire(self, fd: int, offset: int, size: int, *, writable: bool) -> BackingFile:
        """The file behind ``fd``, with one more user; ``fd`` is this object's from now on, whatever happens.

        Raises DmaError: EINVAL where the file is too short, or not one that can back memory; EACCES where
        the fd does not give the access; EPERM where a seal forbids it; ENOSPC over the limit of files; what
        mmap says.
        """
        try:
            info = os.fstat(fd)
            can_write = _access(fd, info, writable=writable)
            _check_length(info.st_size, offset, size)
            key = (info.st_dev, info.st_ino, can_write)
            backing = self._files.get(key)
            if backing is None:
                backing = self._adopt(fd, key, offset, size, writable=writable)
                fd = -1
            else:
                backing.check_writable(writable=writable)
            if offset + size > backing.size:
                backing.grow(info.st_size)
            backing.users += 1
        except DmaError:
            raise
        except OSError as exc:
            raise DmaError(exc.errno or errno.EINVAL, f"the DMA fd cannot be mapped: {exc.strerror}") from exc
        finally:
            if fd >= 0:
                os.close(fd)
        return backing

    def release(self, backing: BackingFile) -> None:
        """Drop one user; the last one closes the file, and what still looks at its mapping sees zeros."""
        backing.users -= 1
        if backing.users > 0:
            return
        del self._files[backing.key]
        with contextlib.suppress(OSError):
            backing.space.clear(0, backing.size)
        os.close(backing.fd)
        backing.fd = -1

    def _adopt(self, fd: int, key: _Key, offset: int, size: int, *, writable: bool) -> BackingFile:
        """A new file; ``fd`` is still the caller's where this raises."""
        if len(self._files) >= self._max_files:
            raise DmaError(errno.ENOSPC, f"memory is backed by more than {self._max_files} files")
        page_size = _page_size(fd)
        seals = _seal(fd)
        # What a client did between the first look and the seal shows now.
        file_size = os.fstat(fd).st_size
        _check_length(file_size, offset, size)
        backing = BackingFile(
            fd,
            key,
            writable=key[2] and not seals & _WRITE_SEALS,
            page_size=page_size,
            sealed=bool(seals & fcntl.F_SEAL_SHRINK),
        )
        backing.check_writable(writable=writable)
        backing.grow(file_size)
        self._files[key] = backing
        if not backing.sealed:
            self._report(backing)
        return backing

    def _report(self, backing: BackingFile) -> None:
        file = backing.key[:2]
        if file not in self._unsealed and len(self._unsealed) < self._max_files:
            self._unsealed.add(file)
            self._on_unsealed(backing)


def _access(fd: int, info: os.stat_result, *, writable: bool) -> bool:
    """Whether ``fd`` can be mapped writable; raises DmaError where it cannot be mapped as wanted."""
    if not stat.S_ISREG(info.st_mode):
        raise DmaError(errno.EINVAL, "a DMA fd must be a memfd or a regular file")
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    mode = flags & os.O_ACCMODE
    if flags & _O_PATH or mode == os.O_WRONLY:
        raise DmaError(errno.EACCES, "the DMA fd is not open for reading")
    if writable and mode != os.O_RDWR:
        raise DmaError(errno.EACCES, "a writable DMA map came with a read-only fd")
    return mode == os.O_RDWR


def _check_length(file_size: int, offset: int, size: int) -> None:
    if offset + size > file_size:
        raise DmaError(
            errno.EINVAL,
            f"the DMA fd is shorter than promised: {file_size:#x} bytes, {offset + size:#x} needed",
        )


def _page_size(fd: int) -> int:
    """The unit that the kernel maps the file in (hugetlbfs: its st_blksize)."""
    filesystem = libc.filesystem_type(fd)
    if filesystem == libc.FUSE_SUPER_MAGIC:
        # A page fault would wait, without bound, for the process that serves the file: the client, perhaps.
        raise DmaError(errno.EINVAL, "a DMA fd must not be on FUSE")
    return os.fstat(fd).st_blksize if filesystem == _HUGETLBFS_MAGIC else PAGE_SIZE


def _seal(fd: int) -> int:
    """Seal the file against shrinking where it can be sealed; returns its seals, 0 where it has none."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return 0
    if not seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            return seals | fcntl.F_SEAL_SHRINK
    return seals
