"""The client's files as a proxy uses them: shortened at any time, sealed, read-only, of every kind."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.trace.proxy import client_file
from server.trace.proxy.client_file import ClientFile, ClientFiles
from tests.fds import open_fds
from tests.server.register_device import PAGE
from tests.server.running import mappings

SIZE = 4 * PAGE


@pytest.fixture(autouse=True)
def _no_mapping_leaks() -> Iterator[None]:
    before = mappings()
    yield
    assert mappings() <= before + 5  # the heap of this process may have grown


def sealed(_folder: Path) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def unsealed(_folder: Path) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    return fd


def regular(folder: Path) -> int:
    fd = os.open(folder / "guest", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


KINDS = (sealed, unsealed, regular)
of_every_kind = pytest.mark.parametrize("make", KINDS)


@pytest.fixture
def files() -> ClientFiles:
    return ClientFiles()


@pytest.fixture
def fd(make: Callable[[Path], int], tmp_path: Path) -> Iterator[int]:
    """The client's own."""
    fd = make(tmp_path)
    yield fd
    os.close(fd)


@pytest.fixture
def file(files: ClientFiles, fd: int) -> Iterator[ClientFile]:
    file = files.acquire(os.dup(fd))
    assert file is not None
    yield file
    files.release(file)


@of_every_kind
@pytest.mark.parametrize("offset", [0, 1, 7, 8, PAGE - 1, SIZE - 3, SIZE - 9])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_written_is_in_the_file_and_is_read(
    file: ClientFile, fd: int, offset: int, count: int
) -> None:
    file.write(offset, b"abc"[:count])
    assert os.pread(fd, count, offset) == b"abc"[:count]
    os.pwrite(fd, b"xyz"[:count], offset)
    assert file.read(offset, count) == b"xyz"[:count]


@of_every_kind
def test_large_accesses_are_whole(file: ClientFile, fd: int) -> None:
    data = os.urandom(SIZE - 5)
    file.write(5, data)
    assert file.read(5, len(data)) == data
    assert os.pread(fd, SIZE, 5) == data


@of_every_kind
@pytest.mark.parametrize("offset", [SIZE, SIZE - 1, 1 << 40, 1 << 62])
def test_nothing_is_behind_the_end_of_the_file(file: ClientFile, fd: int, offset: int) -> None:
    with pytest.raises(OSError, match="ends before it") as error:
        file.read(offset, 4)
    assert error.value.errno == errno.EFAULT
    with pytest.raises(OSError, match="ends before it") as error:
        file.write(offset, b"abcd")
    assert error.value.errno == errno.EFAULT
    assert os.fstat(fd).st_size == SIZE


@pytest.mark.parametrize("make", [unsealed, regular])
def test_a_file_may_become_shorter_at_any_time(file: ClientFile, fd: int) -> None:
    assert file.read(0, SIZE) == bytes(SIZE)
    os.ftruncate(fd, PAGE + 10)
    with pytest.raises(OSError, match="ends before it"):
        file.read(PAGE, PAGE)
    with pytest.raises(OSError, match="ends before it"):
        file.write(2 * PAGE, b"abcd")
    assert file.read(PAGE + 6, 4) == bytes(4)


@of_every_kind
def test_a_file_may_become_longer(file: ClientFile, fd: int) -> None:
    assert file.read(0, 4) == bytes(4)
    os.ftruncate(fd, 4 * SIZE)
    file.write(3 * SIZE, b"new")
    assert os.pread(fd, 3, 3 * SIZE) == b"new"
    assert file.read(3 * SIZE, 3) == b"new"


@pytest.mark.parametrize("make", [sealed])
def test_a_file_that_cannot_become_shorter_is_accessed_in_place(
    file: ClientFile, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """System calls copy an index byte by byte, and a guest that looks meanwhile sees half of it."""
    os.pwrite(fd, b"index", 0)
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    file.write(5, b" of a ring")
    assert file.read(0, 15) == b"index of a ring"


@pytest.mark.parametrize("make", [sealed])
def test_a_file_that_is_sealed_against_writing_is_read_only(files: ClientFiles, fd: int) -> None:
    os.pwrite(fd, b"data", 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    file = files.acquire(os.dup(fd))
    assert file is not None
    with pytest.raises(PermissionError):
        file.write(0, b"DATA")
    assert file.read(0, 4) == b"data"
    files.release(file)


@pytest.mark.parametrize("make", [unsealed])
@pytest.mark.parametrize("offset", [0, 100, PAGE - 1, SIZE - 4])
def test_a_file_without_a_write_of_its_own_is_written_as_a_mapping(
    file: ClientFile, fd: int, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hugetlbfs has no write, and this machine may have no huge pages."""
    _refuse_to_write(monkeypatch)
    file.write(offset, b"abcd")
    monkeypatch.undo()
    assert os.pread(fd, SIZE, 0) == bytes(offset) + b"abcd" + bytes(SIZE - 4 - offset)


@pytest.mark.parametrize("make", [unsealed])
def test_writing_a_mapping_of_a_file_that_has_become_shorter_is_an_error(
    file: ClientFile, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse_to_write(monkeypatch, then=lambda: os.ftruncate(fd, SIZE - PAGE))
    mapped = mmap.mmap

    def late(*arguments: int, **options: int) -> object:
        os.ftruncate(fd, SIZE)  # or there would be no mapping
        mapping = mapped(*arguments, **options)
        os.ftruncate(fd, SIZE - PAGE)
        return mapping

    monkeypatch.setattr(mmap, "mmap", late)
    with pytest.raises(OSError, match=r"Bad address|in part only") as error:
        file.write(SIZE - 8, b"abcdefgh")
    assert error.value.errno == errno.EFAULT


def _refuse_to_write(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object] = lambda: None) -> None:
    pwrite = os.pwrite
    refused: list[int] = []

    def pwrite_once_refused(fd: int, data: bytes, offset: int) -> int:
        if not refused:
            refused.append(fd)
            then()
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite_once_refused)


@of_every_kind
def test_a_file_is_open_once_however_often_it_is_named(files: ClientFiles, fd: int) -> None:
    before = open_fds()
    found = [files.acquire(os.dup(fd)) for _ in range(5)]
    assert len({id(file) for file in found}) == 1
    assert len(files) == 1
    assert open_fds() == before + 1
    for file in found:
        assert file is not None
        files.release(file)
    assert len(files) == 0


def test_files_for_reading_and_for_writing_are_kept_apart(files: ClientFiles, tmp_path: Path) -> None:
    for mode in (os.O_RDONLY, os.O_RDWR):
        (tmp_path / "guest").touch()
        file = files.acquire(os.open(tmp_path / "guest", mode))
        assert file is not None
        assert file.users == 1
        files.release(file)


def test_what_is_no_readable_file_is_not_used(files: ClientFiles, tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(bytes(PAGE))
    reader, writer = os.pipe()
    unusable = [
        reader,
        writer,
        os.open("/dev/zero", os.O_RDWR),
        os.open("/", os.O_RDONLY),
        os.eventfd(0),
        os.open(tmp_path / "guest", os.O_PATH),
        os.open(tmp_path / "guest", os.O_WRONLY),
        os.open(tmp_path / "guest", os.O_RDWR | os.O_APPEND),
    ]
    assert [files.acquire(fd) for fd in unusable] == [None] * len(unusable)
    assert len(files) == 0


def test_there_is_a_limit_to_different_files(
    files: ClientFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_file, "MAX_FILES", 3)
    found = [files.acquire(os.memfd_create("guest")) for _ in range(5)]
    assert [file is None for file in found] == [False] * 3 + [True] * 2
    for file in found[:3]:
        assert file is not None
        files.release(file)
