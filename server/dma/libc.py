"""mmap at a chosen address, mprotect and fstatfs, which Python's own modules do not offer."""

from __future__ import annotations

import ctypes
import mmap
import os

MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
PROT_NONE = 0
FUSE_SUPER_MAGIC = 0x65735546
"""What :func:`filesystem_type` says of a FUSE file system (linux/magic.h)."""

_MAP_FAILED = ctypes.c_void_p(-1).value
_STATFS_BYTES = 256  # struct statfs is 120 bytes on 64-bit Linux

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_mmap.restype = ctypes.c_void_p
_mprotect = _libc.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mprotect.restype = ctypes.c_int
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_fstatfs.restype = ctypes.c_int


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def map_file_at(address: int, length: int, prot: int, fd: int, offset: int) -> None:
    """Map ``length`` bytes of ``fd`` from ``offset`` over what is at ``address``. Raises OSError."""
    if _mmap(address, length, prot, mmap.MAP_SHARED | MAP_FIXED, fd, offset) == _MAP_FAILED:
        raise _last_error()


def map_nothing_at(address: int, length: int) -> None:
    """Put private zeros, free until written, over what is at ``address``. Raises OSError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
    if _mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == _MAP_FAILED:
        raise _last_error()


def protect(address: int, length: int, prot: int) -> None:
    """Change the protection of mapped pages. Raises OSError."""
    if _mprotect(address, length, prot):
        raise _last_error()


def filesystem_type(fd: int) -> int:
    """The magic number of the file system that ``fd`` lives on (statfs(2), f_type)."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs(fd, buffer):
        raise _last_error()
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
