"""Writes cpio archives in the "newc" format, which is what the kernel takes as an initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel's documentation.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4


class CpioArchive:
    """An archive that grows in memory. Folders above an entry are added by themselves; root owns all."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def add_folder(self, path: str) -> None:
        """Add a folder; adding it again does nothing."""
        name = _relative(path)
        if name not in self._names and name != ".":
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file. Raises ValueError for a name that is taken."""
        self._add(_relative(path), stat.S_IFREG | mode, content)

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to ``target``. Raises ValueError for a name that is taken."""
        self._add(_relative(path), stat.S_IFLNK | 0o777, target.encode())

    def __contains__(self, path: str) -> bool:
        """Tell whether there is an entry at ``path``."""
        return _relative(path) in self._names

    def pack(self) -> bytes:
        """Return the whole archive."""
        return b"".join((*self._parts, _entry(_TRAILER, 0, 0, b"")))

    def _add(self, name: str, mode: int, content: bytes) -> None:
        if name in self._names:
            raise ValueError(f"{name} is in the archive already")
        self.add_folder(str(PurePosixPath(name).parent))
        self._names.add(name)
        self._parts.append(_entry(name, len(self._names), mode, content))


def _relative(path: str) -> str:
    relative = PurePosixPath(path.lstrip("/"))
    if ".." in relative.parts:
        raise ValueError(f"{path} leaves the archive")
    return str(relative)


def _entry(name: str, inode: int, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    links, nobody, time, device, checksum = 1, 0, 0, 0, 0
    fields = (
        inode, mode, nobody, nobody, links, time, len(content), device, device, device, device, len(encoded),
        checksum,
    )  # fmt: skip
    header = (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode()
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
