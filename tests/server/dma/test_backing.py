from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.contract import GuestMemoryError
from devices.work import run_to_completion
from server.dma import backing as backing_module
from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.errors import DmaError
from tests.fds import open_fds
from tests.server.dma.support import READ, READ_WRITE, WRITE, Client, keep, mappings, memfd, page_of, pages

F_SEAL_FUTURE_WRITE = 0x10


@pytest.fixture
def unsealed() -> list[BackingFile]:
    return []


@pytest.fixture
def files(unsealed: list[BackingFile]) -> BackingFiles:
    return BackingFiles(unsealed.append, max_files=4)


def refused(files: BackingFiles, fd: int, *, writable: bool = True, size: int = PAGE_SIZE) -> int | None:
    """The errno of an fd that is refused, once it is certain that it was closed and nothing kept."""
    before, mapped = open_fds(), mappings()
    with pytest.raises(DmaError) as caught:
        files.acquire(fd, 0, size, writable=writable)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert open_fds() == before - 1
    assert mappings() == mapped
    assert len(files) == 0
    return caught.value.errno


def pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def unix_socket() -> int:
    first, second = socket.socketpair()
    second.close()
    return first.detach()


@pytest.mark.parametrize(
    "make",
    [
        pipe,
        unix_socket,
        lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        lambda: os.open("/dev/zero", os.O_RDWR),
        lambda: os.eventfd(0),
        lambda: os.open("/proc/self/status", os.O_RDONLY),
    ],
    ids=["pipe", "socket", "directory", "device", "eventfd", "proc"],
)
def test_what_cannot_back_memory_is_invalid_and_closed(files: BackingFiles, make: Callable[[], int]) -> None:
    assert refused(files, make(), writable=False) == errno.EINVAL


def test_a_file_shorter_than_promised_is_invalid_and_closed(files: BackingFiles) -> None:
    assert refused(files, memfd(2), size=3 * PAGE_SIZE) == errno.EINVAL


def test_a_file_that_is_truncated_while_it_is_looked_at_is_invalid(
    files: BackingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truncate_first(fd: int) -> int:
        os.ftruncate(fd, PAGE_SIZE)
        return seal(fd)

    seal = backing_module._seal
    monkeypatch.setattr(backing_module, "_seal", truncate_first)
    assert refused(files, memfd(2), size=2 * PAGE_SIZE) == errno.EINVAL


def test_a_read_only_fd_cannot_back_writable_memory(files: BackingFiles, tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.write_bytes(page_of(7))
    assert refused(files, os.open(path, os.O_RDONLY)) == errno.EACCES
    backing = files.acquire(os.open(path, os.O_RDONLY), 0, PAGE_SIZE, writable=False)
    assert backing.memory[READ][:] == page_of(7)
    assert all(view.readonly for view in backing.memory)
    files.release(backing)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
def test_an_fd_that_cannot_be_read_is_refused(files: BackingFiles, tmp_path: Path, flags: int) -> None:
    path = tmp_path / "memory"
    path.write_bytes(page_of(7))
    assert refused(files, os.open(path, flags), writable=False) == errno.EACCES


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, F_SEAL_FUTURE_WRITE])
def test_a_file_sealed_against_writing_cannot_back_writable_memory(files: BackingFiles, seal: int) -> None:
    fd = memfd(1)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    assert refused(files, fd) == errno.EPERM


def test_more_files_than_the_limit_are_refused(files: BackingFiles) -> None:
    backings = [files.acquire(memfd(1), 0, PAGE_SIZE, writable=True) for _ in range(4)]
    before = open_fds()
    with pytest.raises(DmaError) as caught:
        files.acquire(memfd(1), 0, PAGE_SIZE, writable=True)
    assert caught.value.errno == errno.ENOSPC
    assert open_fds() == before
    for backing in backings:
        files.release(backing)


def test_a_memfd_is_sealed_against_shrinking(files: BackingFiles, unsealed: list[BackingFile]) -> None:
    fd = memfd(2)
    backing = files.acquire(os.dup(fd), 0, PAGE_SIZE, writable=True)
    assert backing.sealed
    assert unsealed == []
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    files.release(backing)
    os.close(fd)


def test_a_memfd_with_its_seals_sealed_counts_by_the_seals_that_it_has(
    files: BackingFiles, unsealed: list[BackingFile]
) -> None:
    fixed, loose = memfd(1), memfd(1)
    fcntl.fcntl(fixed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK)
    fcntl.fcntl(loose, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    backings = [files.acquire(fd, 0, PAGE_SIZE, writable=True) for fd in (fixed, loose)]
    assert [backing.sealed for backing in backings] == [True, False]
    assert unsealed == [backings[1]]
    for backing in backings:
        files.release(backing)


def test_a_file_is_reported_unsealed_once_and_not_once_per_map(
    files: BackingFiles, unsealed: list[BackingFile], tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(4 * PAGE_SIZE))
    backings = [
        files.acquire(os.open(path, os.O_RDWR), page * PAGE_SIZE, PAGE_SIZE, writable=True)
        for page in range(4)
    ]
    assert unsealed == [backings[0]]
    for backing in backings:
        files.release(backing)


def test_a_file_that_comes_again_and_again_is_reported_unsealed_once(
    files: BackingFiles, unsealed: list[BackingFile], tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(PAGE_SIZE))
    for mode in (os.O_RDWR, os.O_RDONLY, os.O_RDWR):
        fd = os.open(path, mode)
        files.release(files.acquire(fd, 0, PAGE_SIZE, writable=mode == os.O_RDWR))
    assert len(unsealed) == 1


def test_a_client_with_ever_new_files_does_not_fill_the_log(
    files: BackingFiles, unsealed: list[BackingFile], tmp_path: Path
) -> None:
    for number in range(10):
        path = tmp_path / str(number)
        path.write_bytes(bytes(PAGE_SIZE))
        files.release(files.acquire(os.open(path, os.O_RDWR), 0, PAGE_SIZE, writable=True))
    assert len(unsealed) == 4


def test_a_file_is_open_and_mapped_once_however_many_messages_name_it(files: BackingFiles) -> None:
    fd = memfd(64)
    before, mapped = open_fds(), mappings()
    backings = [files.acquire(os.dup(fd), page * PAGE_SIZE, PAGE_SIZE, writable=True) for page in range(64)]
    assert len(set(map(id, backings))) == 1
    assert open_fds() == before + 1
    assert mappings() == mapped + 1
    for backing in backings:
        files.release(backing)
    assert (open_fds(), mappings()) == (before, mapped)
    os.close(fd)


def test_a_file_that_grew_is_mapped_as_long_as_it_is_now(files: BackingFiles) -> None:
    fd = memfd(1, first=5)
    backing = files.acquire(os.dup(fd), 0, PAGE_SIZE, writable=True)
    old = backing.memory[READ_WRITE][:16]
    os.ftruncate(fd, 2 * PAGE_SIZE)
    os.pwrite(fd, page_of(6), PAGE_SIZE)
    assert files.acquire(os.dup(fd), PAGE_SIZE, PAGE_SIZE, writable=True) is backing
    assert backing.memory[READ][PAGE_SIZE:] == page_of(6)
    old[:4] = b"same"
    assert bytes(backing.memory[READ][:4]) == b"same"
    files.release(backing)
    files.release(backing)
    os.close(fd)


def test_a_view_that_outlives_its_file_sees_zeros(files: BackingFiles) -> None:
    backing = files.acquire(memfd(1, first=9), 0, PAGE_SIZE, writable=True)
    stale = backing.memory[READ_WRITE][:]
    assert stale == page_of(9)
    files.release(backing)
    del backing
    assert stale == bytes(PAGE_SIZE)
    stale[:4] = b"lost"


def test_a_file_truncated_behind_our_back_cannot_be_pinned_or_mapped_again(client: Client) -> None:
    fd = memfd(4, sealable=False)
    client.memory.map(0, 4 * PAGE_SIZE, READ_WRITE, os.dup(fd), 0)
    assert len(client.events("dma_fd_unsealed")) == 1
    os.ftruncate(fd, PAGE_SIZE)
    with pytest.raises(GuestMemoryError) as unpinnable:
        client.memory.pin_pages(pages(0, 3), READ, keep)
    assert unpinnable.value.errno == errno.EFAULT
    assert client.memory.stats()["locked_bytes"] == 0
    client.memory.pin_pages(pages(0), READ, keep).release()
    with pytest.raises(DmaError, match="shorter than promised"):
        client.memory.map(8 * PAGE_SIZE, 4 * PAGE_SIZE, READ_WRITE, os.dup(fd), 0)
    os.close(fd)


@pytest.fixture
def busy(client: Client) -> Iterator[Client]:
    client.map(0, 4)
    yield client
    assert run_to_completion(client.memory.read(0, PAGE_SIZE)) == page_of(0)


@pytest.mark.parametrize(
    ("iova", "size", "offset", "expected"),
    [
        (0, PAGE_SIZE, 0, errno.EEXIST),
        (PAGE_SIZE + 1, PAGE_SIZE, 0, errno.EINVAL),
        (8 * PAGE_SIZE, PAGE_SIZE, 12, errno.EINVAL),
        (8 * PAGE_SIZE, PAGE_SIZE, 64 * PAGE_SIZE, errno.EINVAL),
        (8 * PAGE_SIZE, PAGE_SIZE, 1 << 63, errno.EINVAL),
        (8 * PAGE_SIZE, 1 << 62, 0, errno.EINVAL),
    ],
)
def test_the_fd_of_a_refused_map_is_closed(
    busy: Client, iova: int, size: int, offset: int, expected: int
) -> None:
    before = open_fds()
    with pytest.raises(DmaError) as caught:
        busy.memory.map(iova, size, READ_WRITE, os.dup(busy.fd), offset)
    assert caught.value.errno == expected
    assert open_fds() == before
    assert busy.memory.stats()["regions"] == 1


def test_the_fd_of_a_map_beyond_the_limit_is_closed() -> None:
    client = Client(max_regions=1)
    client.map(0, 1)
    before = open_fds()
    with pytest.raises(DmaError) as caught:
        client.map(4, 1)
    assert caught.value.errno == errno.ENOSPC
    assert open_fds() == before
    client.close()


def test_a_write_only_region_is_written_and_not_read(client: Client) -> None:
    client.map(0, 1, WRITE)
    run_to_completion(client.memory.write(0, b"in"))
    assert client.file_page(0)[:2] == b"in"
    with pytest.raises(GuestMemoryError) as caught:
        run_to_completion(client.memory.read(0, 2))
    assert caught.value.errno == errno.EPERM
