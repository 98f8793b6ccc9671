"""The ring of files: bounded, each file readable by itself, and nothing breaks where it cannot be written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import pcapng
from protocol.pcapng import Packet, Parser
from server.trace.ring import BUFFER, FILES, MIN_LIMIT, TraceRing, parse_limit

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

SHARE = MIN_LIMIT // FILES
START = pcapng.section("tests") + pcapng.interface(pcapng.LINKTYPE_USER0, "messages")


def block(number: int, size: int = 100) -> bytes:
    return pcapng.packet(0, number, bytes(size))


@contextmanager
def ring_at(path: Path, limit: int | None = None) -> Iterator[TraceRing]:
    ring = TraceRing(path, limit)
    try:
        yield ring
    finally:
        ring.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def fill(ring: TraceRing, numbers: range, size: int) -> None:
    """Append blocks as a recorder does: a new file begins with a section of its own."""
    for number in numbers:
        if ring.offset == 0:
            ring.append(START)
        ring.append(block(number, size))
        if ring.full:
            ring.rotate()


def numbers_in(path: Path) -> list[int]:
    """The blocks of a file that can be read by itself."""
    parser = Parser()
    parser.feed(path.read_bytes())
    found = [one.timestamp for one in parser.blocks() if isinstance(one, Packet)]
    assert parser.pending == 0
    return found


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files_of(path: Path) -> list[Path]:
    """From the oldest to the newest."""
    older = [path.with_name(f"{path.name}.{number}") for number in range(FILES - 1, 0, -1)]
    return [one for one in (*older, path) if one.exists()]


@pytest.mark.parametrize("size", [0, 1000, 70_000, 2 * SHARE])
def test_the_files_have_the_last_blocks_in_order_and_are_readable_by_themselves(
    file: Path, size: int
) -> None:
    count = 6 * SHARE // (len(block(0, size))) + 7
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(count), size)
        assert ring.files_written > FILES
    found = [number for one in files_of(file) for number in numbers_in(one)]
    assert found == list(range(count))[-len(found) :]
    assert sum(len(block(0, size)) for _ in found) > MIN_LIMIT - SHARE - len(block(0, size)) - FILES * len(
        START
    )
    assert sorted(file.parent.iterdir()) == sorted(files_of(file))


@given(st.lists(st.integers(0, 300_000), max_size=60), st.integers(MIN_LIMIT, 2 * MIN_LIMIT))
def test_the_files_stay_within_the_limit_and_a_block_each(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    file = tmp_path_factory.mktemp("ring") / "trace"
    with ring_at(file, limit) as ring:
        for number, size in enumerate(sizes * 2):
            fill(ring, range(number, number + 1), size)
            for one in files_of(file):
                assert one.stat().st_size < limit // FILES + len(block(0, max(sizes)))
    assert sum(one.stat().st_size for one in files_of(file)) <= ring.bytes_written
    for one in files_of(file):
        one.unlink()


def test_each_block_is_where_the_ring_says(file: Path) -> None:
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(2000), 1000)
        places = [ring.append(block(number)) for number in range(5000, 5010)]
        assert ring.offset == places[-1] + len(block(0))
    data = file.read_bytes()
    assert all(data[at:].startswith(block(5000 + index)) for index, at in enumerate(places))


def test_without_a_limit_there_is_one_file(file: Path) -> None:
    with ring_at(file) as ring:
        fill(ring, range(100), SHARE // 10)
        assert not ring.full
        assert ring.files_written == 1
    assert numbers_in(file) == list(range(100))
    assert files_of(file) == [file]


def test_what_an_earlier_server_left_is_gone(file: Path) -> None:
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(8), SHARE)
    assert len(files_of(file)) == FILES
    with ring_at(file) as ring:
        ring.append(START)
    assert files_of(file) == [file]
    assert file.read_bytes() == START


def test_what_is_kept_back_is_written_by_a_flush_or_when_there_is_enough(file: Path) -> None:
    with ring_at(file) as ring:
        ring.append(START)
        assert file.read_bytes() == b""
        ring.flush()
        assert file.read_bytes() == START
        ring.append(bytes(BUFFER))
        assert file.stat().st_size == len(START) + BUFFER


def test_what_the_kernel_takes_in_parts_is_written_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    with ring_at(file) as ring:
        fill(ring, range(3), 50)
    monkeypatch.undo()
    assert numbers_in(file) == [0, 1, 2]


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_no_umask")
def test_all_files_are_for_their_owner_alone(file: Path) -> None:
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(8), SHARE)
    assert [mode_of(one) for one in files_of(file)] == [0o600] * FILES


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o600), (0o666, 0o600), (0o777, 0o700), (0o600, 0o600)]
)
def test_a_file_that_was_there_is_for_its_owner_alone_from_then_on(
    file: Path, before: int, after: int
) -> None:
    file.write_bytes(START + block(1))
    file.chmod(before)
    with ring_at(file) as ring:
        assert mode_of(file) == after
        ring.append(START)
    assert file.read_bytes() == START


def test_a_full_disk_ends_the_recording_and_is_reported_once() -> None:
    device = Path("/dev/full")
    mode = device.stat().st_mode
    reported: list[OSError] = []
    with ring_at(device, MIN_LIMIT) as ring:
        ring.when_failed = reported.append
        ring.append(START)
        ring.flush()
        assert [error.errno for error in reported] == [errno.ENOSPC]
        assert ring.error is reported[0]
        fill(ring, range(10), SHARE)
        ring.flush()
        assert ring.bytes_written == 0
        assert not ring.full
    assert len(reported) == 1
    assert device.stat().st_mode == mode


def test_a_full_disk_that_nobody_wants_to_know_of_breaks_nothing() -> None:
    with ring_at(Path("/dev/full")) as ring:
        ring.append(START)
        ring.flush()
        assert ring.error is not None


def test_what_is_no_regular_file_is_written_to_and_neither_renamed_nor_limited(tmp_path: Path) -> None:
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    mode = null.stat().st_mode
    (tmp_path / "null.1").write_text("somebody's")
    with ring_at(null, MIN_LIMIT) as ring:
        fill(ring, range(10), SHARE)
        assert ring.files_written == 1
        assert ring.error is None
    assert null.is_symlink()
    assert null.stat().st_mode == mode
    assert (tmp_path / "null.1").read_text() == "somebody's"


CHILD = """
import resource, sys
from pathlib import Path
from tests.server.trace.test_ring import MIN_LIMIT, SHARE, TraceRing, fill
resource.setrlimit(resource.RLIMIT_FSIZE, (SHARE // 2, SHARE // 2))
ring = TraceRing(Path(sys.argv[1]), MIN_LIMIT)
ring.when_failed = lambda error: print(error.errno, flush=True)
fill(ring, range(3000), 1000)
ring.close()
"""


def test_a_file_that_must_not_grow_is_readable_up_to_its_last_whole_block(file: Path) -> None:
    child = [sys.executable, "-c", CHILD, str(file)]
    result = subprocess.run(child, capture_output=True, text=True, timeout=600, check=True)
    assert result.stdout.split() == [str(errno.EFBIG)]
    assert files_of(file) == [file]
    assert file.stat().st_size == SHARE // 2
    parser = Parser()
    parser.feed(file.read_bytes())
    found = [one.timestamp for one in parser.blocks() if isinstance(one, Packet)]
    assert found == list(range((SHARE // 2 - len(START)) // len(block(0, 1000))))
    assert 0 < parser.pending < len(block(0, 1000))


def test_a_file_that_cannot_be_renamed_ends_the_recording_and_is_reported_once(file: Path) -> None:
    reported: list[OSError] = []
    with ring_at(file, MIN_LIMIT) as ring:
        ring.when_failed = reported.append
        (file.parent / "trace.3").mkdir()
        fill(ring, range(10), SHARE)
        assert not ring.full
    assert [error.errno for error in reported] == [errno.EISDIR]
    (file.parent / "trace.3").rmdir()
    assert [numbers_in(one) for one in files_of(file)] == [[0], [1], [2]]


def test_a_folder_that_is_gone_ends_the_recording_and_is_reported_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    reported: list[OSError] = []
    with ring_at(folder / "trace", MIN_LIMIT) as ring:
        ring.when_failed = reported.append
        (folder / "trace").unlink()
        folder.rmdir()
        fill(ring, range(5), SHARE)
    assert [error.errno for error in reported] == [errno.ENOENT]


def test_a_file_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TraceRing(tmp_path / "nowhere" / "trace")
    with pytest.raises(IsADirectoryError):
        TraceRing(tmp_path)
    (tmp_path / "trace.2").mkdir()
    with pytest.raises(OSError, match=r"trace\.2"):
        TraceRing(tmp_path / "trace", MIN_LIMIT)


@pytest.mark.parametrize(
    ("text", "limit"), [("none", None), ("4M", 4 << 20), ("1G", 1 << 30), (str(MIN_LIMIT), MIN_LIMIT)]
)
def test_a_limit_is_a_size_or_none(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "0", "-1", "4194303", "3M", "much", "None"])
def test_what_is_no_limit_or_too_small_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_limit(text)
