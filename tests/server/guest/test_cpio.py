from __future__ import annotations

import pytest

from server.guest.cpio import CpioArchive


def header(inode: int, mode: int, size: int, name_size: int) -> bytes:
    """A newc header by buffer-format.rst: 13 fields of 8 hexadecimal digits after the magic."""
    fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0]
    return b"070701" + b"".join(b"%08X" % field for field in fields)


TRAILER = header(0, 0, 0, 11) + b"TRAILER!!!\0" + b"\0" * 3


def test_names_and_contents_are_padded_to_four_bytes() -> None:
    archive = CpioArchive()
    archive.add_file("init", b"12345", 0o755)
    entry = header(1, 0o100755, 5, 5) + b"init\0" + b"\0" * 1 + b"12345" + b"\0" * 3
    assert len(entry) % 4 == 0
    assert archive.pack() == entry + TRAILER


def test_folders_come_before_what_is_in_them() -> None:
    archive = CpioArchive()
    archive.add_symlink("/bin/sh", "busybox")
    archive.add_folder("bin")
    folder = header(1, 0o040755, 0, 4) + b"bin\0" + b"\0" * 2
    link = header(2, 0o120777, 7, 7) + b"bin/sh\0" + b"\0" * 3 + b"busybox\0"
    assert archive.pack() == folder + link + TRAILER
    assert "bin/sh" in archive
    assert "bin/ls" not in archive


def test_a_name_is_taken_once() -> None:
    archive = CpioArchive()
    archive.add_file("init", b"")
    with pytest.raises(ValueError, match="already"):
        archive.add_symlink("/init", "elsewhere")


def test_a_name_stays_inside_the_archive() -> None:
    with pytest.raises(ValueError, match="leaves the archive"):
        CpioArchive().add_file("lib/../../etc/passwd", b"")
