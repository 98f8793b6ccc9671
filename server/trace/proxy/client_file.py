"""The files behind a client's memory, for a proxy that reads and writes them in the client's name.

A client may shorten such a file at any time, and an access to a mapping would then end this process with SIGBUS. So
only files that are sealed against shrinking are mapped; others are accessed by system calls, which fail instead.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from server.dma.libc import FUSE_SUPER_MAGIC, filesystem_type

MAX_FILES = 1024
"""Different files that one client may back its memory with."""

_WORD = 8
_Key = tuple[int, int, int]


class ClientFile:
    """One file, open once however many DMA maps name it. Accesses raise OSError; EFAULT behind its end."""

    def __init__(self, fd: int, key: _Key) -> None:
        """Take ``fd`` over, a regular file that can be read."""
        self.key = key
        self.users = 0
        self._fd = fd
        self._writable = key[2] == os.O_RDWR
        self._sealed = _is_sealed(fd)
        self._mapping: mmap.mmap | None = None

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        mapping = self._mapped(offset + count)
        if mapping is not None:
            return mapping[offset : offset + count]
        # The kernel copies a word in one go, and less than a word byte by byte: an index that the guest is just
        # writing would be read half old and half new.
        start = offset - offset % _WORD
        end = offset + count
        data = os.pread(self._fd, max(end - start, _WORD), start)[offset - start : end - start]
        if len(data) != count:
            raise OSError(errno.EFAULT, "the file behind the memory ends before it")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data``, and do not make the file longer."""
        if not self._writable:
            raise OSError(errno.EPERM, "the file behind the memory is open for reading only")
        end = offset + len(data)
        mapping = self._mapped(end)
        if mapping is not None:
            mapping[offset:end] = data
            return
        if os.fstat(self._fd).st_size < end:
            raise OSError(errno.EFAULT, "the file behind the memory ends before it")
        try:
            written = os.pwrite(self._fd, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            written = self._write_mapped(offset, data)  # hugetlbfs has no write
        if written != len(data):
            raise OSError(errno.EFAULT, "the memory could be written in part only")

    def close(self) -> None:
        """Close the file."""
        if self._mapping is not None:
            self._mapping.close()
        os.close(self._fd)

    def _mapped(self, end: int) -> mmap.mmap | None:
        """The mapping of a sealed file, where that has ``end`` bytes and may be accessed so."""
        if not self._sealed:
            return None
        if self._mapping is None or len(self._mapping) < end:
            size = os.fstat(self._fd).st_size
            if size < end:
                return None
            prot = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
            try:
                mapping = mmap.mmap(self._fd, size, mmap.MAP_SHARED, prot)
            except OSError:  # for example sealed against writing, too
                self._sealed = False
                return None
            if self._mapping is not None:
                self._mapping.close()
            self._mapping = mapping
        return self._mapping

    def _write_mapped(self, offset: int, data: bytes) -> int:
        """Have the kernel copy into a mapping: where the file has become shorter, it says so, without SIGBUS."""
        page = os.fstat(self._fd).st_blksize  # hugetlbfs: what it maps at a time
        start, end = offset - offset % page, offset + len(data)
        scratch = os.memfd_create("vgpud-trace", os.MFD_CLOEXEC)
        try:
            os.pwrite(scratch, data, 0)
            with mmap.mmap(
                self._fd, -(-(end - start) // page) * page, mmap.MAP_SHARED, offset=start
            ) as mapping:
                whole = memoryview(mapping)
                with whole, whole[offset - start : end - start] as part:
                    return os.preadv(scratch, [part], 0)
        finally:
            os.close(scratch)


class ClientFiles:
    """The files of one client, by device, inode and what their fds permit."""

    def __init__(self) -> None:
        self._files: dict[_Key, ClientFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def acquire(self, fd: int) -> ClientFile | None:
        """The file behind ``fd``, with one more user; None where it cannot be accessed for the client.

        ``fd`` belongs to this from here on. Raises nothing.
        """
        key = _key_of(fd)
        file = None if key is None else self._files.get(key)
        if key is None or file is not None or len(self._files) >= MAX_FILES:
            os.close(fd)
        else:
            file = self._files[key] = ClientFile(fd, key)
        if file is not None:
            file.users += 1
        return file

    def release(self, file: ClientFile) -> None:
        """Drop one user; the last one closes the file."""
        file.users -= 1
        if file.users == 0:
            del self._files[file.key]
            file.close()


def _key_of(fd: int) -> _Key | None:
    """None where ``fd`` is no file whose parts can be read, or one that somebody may keep from being read."""
    status = os.fstat(fd)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    mode = flags & os.O_ACCMODE
    if not stat.S_ISREG(status.st_mode) or flags & (os.O_PATH | os.O_APPEND) or mode == os.O_WRONLY:
        return None
    if filesystem_type(fd) == FUSE_SUPER_MAGIC:
        return None
    return status.st_dev, status.st_ino, mode


def _is_sealed(fd: int) -> bool:
    """Whether the file cannot become shorter."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False
