"""What a recorded client wrote to mapped areas is written again, into the areas of the server and nowhere else."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import RegionFlags, RegionInfo, SparseArea, SparseMmap
from protocol.trace import AreaChange, TraceError, digest, pack_content
from server.client import VfioUserClient
from server.dma import libc
from server.fds import ReceivedFds
from server.trace.reader import TraceReader
from server.trace.replay.server_areas import (
    MAX_AREAS,
    MAX_FILES,
    MAX_REGIONS,
    MAX_WAITING,
    MAX_WAITING_BYTES,
    AreasRefused,
    ServerAreas,
)
from tests.fds import open_fds, settled_fds
from tests.server.register_device import AREAS, BAR3, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS
from tests.server.trace.replay.sessions import record, replayed
from tests.server.trace.show_files import TraceFile

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

READ_WRITE_MMAP = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
SIZE = 8 * PAGE
PLACE = 2 * PAGE
"""Where the region is in the server's file."""


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("region", os.MFD_CLOEXEC)
    os.ftruncate(fd, PLACE + SIZE)
    with ReceivedFds([fd]):
        yield fd


@pytest.fixture
def areas(tmp_path: Path) -> Iterator[ServerAreas]:
    with TraceReader(TraceFile().save(tmp_path / "trace")) as reader:
        areas = ServerAreas(reader)
        yield areas
        areas.close()


def info(*sparse: tuple[int, int], index: int = BAR3, size: int = SIZE) -> memoryview:
    capabilities = (SparseMmap(tuple(SparseArea(*one) for one in sparse)),) if sparse else ()
    return memoryview(RegionInfo(index, READ_WRITE_MMAP, size, PLACE, capabilities).pack())


def change(offset: int, data: bytes, region: int = BAR3) -> AreaChange:
    return AreaChange(region, offset, len(data), data)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def test_a_change_is_written_where_the_region_is_in_the_file(areas: ServerAreas, file: int) -> None:
    areas.offered(info((PAGE, PAGE)), [file])
    areas.put(change(PAGE + 5, b"here"))
    assert content(file).strip(b"\0") == b"here"
    assert content(file).index(b"here") == PLACE + PAGE + 5


def test_a_region_without_areas_may_be_mapped_as_a_whole(areas: ServerAreas, file: int) -> None:
    areas.offered(info(), [file])
    areas.put(change(SIZE - 1, b"end"))
    assert content(file)[PLACE + SIZE - 1 :] == b"e"


def test_each_area_may_have_a_file_of_its_own(areas: ServerAreas, file: int) -> None:
    with ReceivedFds([os.memfd_create("other", os.MFD_CLOEXEC)]) as others:
        (other,) = others.numbers
        os.ftruncate(other, PLACE + SIZE)
        areas.offered(info((0, PAGE), (PAGE, PAGE)), [file, other])
        areas.put(change(PAGE - 1, b"ab"))
        assert content(file)[PLACE + PAGE - 1 :][:2] == b"a\0"
        assert content(other)[PLACE + PAGE - 1 :][:2] == b"\0b"


def test_what_comes_before_the_client_asks_is_written_when_it_has(areas: ServerAreas, file: int) -> None:
    for number in range(MAX_WAITING + 10):
        areas.put(change(8, number.to_bytes(4, "big")))
    areas.put(change(8, b"other", region=1))
    areas.offered(info((0, SIZE)), [file])
    assert content(file)[PLACE + 8 :][:5] == (MAX_WAITING - 1).to_bytes(4, "big") + b"\0"


def test_what_waits_takes_no_more_memory_than_is_set_aside(areas: ServerAreas, file: int) -> None:
    piece = b"piece" * 40000
    count = MAX_WAITING_BYTES // len(piece)
    for number in range(count + 40):
        areas.put(change(number, piece))
    for region in range(10):
        areas.put(change(0, piece, region=region))
    areas.offered(info((0, SIZE)), [file])
    assert content(file)[PLACE : PLACE + SIZE] == b"p" * (count - 1) + piece[: SIZE - count + 1]


def test_as_many_areas_as_there_may_be_take_one_file(areas: ServerAreas, file: int) -> None:
    os.ftruncate(file, PLACE + 16 * MAX_AREAS)
    before = settled_fds()
    sparse = [(16 * number, 8) for number in range(MAX_AREAS)]
    areas.offered(info(*sparse, size=16 * MAX_AREAS), [file])
    assert open_fds() == before + 1
    areas.put(change(4, b"x" * 16 * MAX_AREAS))
    assert content(file)[PLACE:] == bytes(4) + b"xxxx" + (bytes(8) + b"x" * 8) * (MAX_AREAS - 1) + bytes(8)
    with pytest.raises(AreasRefused, match=f"{MAX_AREAS + 1} mappable areas of BAR3"):
        areas.offered(info(*sparse, (0, 0), size=16 * MAX_AREAS), [file])
    assert open_fds() == before


@pytest.mark.parametrize("sparse", [[(0, PAGE)] * 5000, [(2 * PAGE, PAGE), (0, 2 * PAGE + 1)]])
def test_areas_that_overlap_are_refused_and_nothing_is_written(
    areas: ServerAreas, file: int, sparse: list[tuple[int, int]]
) -> None:
    areas.put(change(0, b"before"))
    before = settled_fds()
    with pytest.raises(AreasRefused, match="areas of BAR3"):
        areas.offered(info(*sparse), [file])
    areas.put(change(2 * PAGE, b"here"))
    assert open_fds() == before
    assert not any(content(file))
    areas.offered(info((0, PAGE)), [file])
    areas.put(change(0, b"here"))
    assert content(file)[PLACE:][:6] == b"here\0\0"


def test_the_files_of_all_regions_are_bounded(areas: ServerAreas, file: int) -> None:
    sparse = [(16 * number, 16) for number in range(16)]
    with ReceivedFds([os.dup(file) for _ in range(16)]) as fds:
        for region in range(MAX_FILES // 16):
            areas.offered(info(*sparse, index=region), fds.numbers)
        with pytest.raises(AreasRefused, match=f"more than {MAX_FILES} files to map: those of region 77"):
            areas.offered(info((0, PAGE), index=77), [file])


def test_the_regions_are_bounded(areas: ServerAreas) -> None:
    for region in range(100, 100 + MAX_REGIONS):
        areas.offered(info(index=region), [])
    with pytest.raises(AreasRefused, match=f"lets BAR3 be mapped, and {MAX_REGIONS} others"):
        areas.offered(info(), [])
    areas.offered(info(index=100), [])


def test_files_that_cannot_be_kept_are_done_without(
    areas: ServerAreas, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ReceivedFds([os.dup(file)]) as others:
        duplicate, left = os.dup, 1

        def last(fd: int) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return duplicate(fd)

        monkeypatch.setattr(os, "dup", last)
        with pytest.raises(AreasRefused, match="files of BAR3 are done without: Too many open files"):
            areas.offered(info((0, PAGE), (PAGE, PAGE)), [file, *others.numbers])


spots = st.integers(0, SIZE + PAGE) | st.sampled_from([2**32, 2**63, 2**64 - 1])


@given(
    st.lists(
        st.tuples(st.integers(0, 2**16 - 1) | st.just(BAR3), spots, st.binary(min_size=1, max_size=3 * PAGE))
    )
)
def test_nothing_is_written_outside_of_the_areas(changes: list[tuple[int, int, bytes]]) -> None:
    expected = bytearray(SIZE)
    with (
        ReceivedFds([os.memfd_create("region", os.MFD_CLOEXEC)]) as fds,
        TraceReader(Path("/dev/null")) as reader,
    ):
        (fd,) = fds.numbers
        os.pwrite(fd, b"\xff" * (PLACE + SIZE + PAGE), 0)
        os.pwrite(fd, expected, PLACE)
        areas = ServerAreas(reader)
        areas.offered(info(*((area.offset, area.length) for area in AREAS)), [fd])
        for region, offset, data in changes:
            areas.put(change(offset, data, region))
            for at, byte in enumerate(data, offset):
                if region == BAR3 and any(area.offset <= at < area.offset + area.length for area in AREAS):
                    expected[at] = byte
        areas.close()
        assert content(fd) == b"\xff" * PLACE + expected + b"\xff" * PAGE


@pytest.mark.parametrize(
    "sparse",
    [
        [(0, 2**64 - 1)],
        [(2**64 - 1, 2**64 - 1)],
        [(2**63, PAGE)],
        [(SIZE, PAGE)],
        [(SIZE + PAGE, PAGE)],
        [(PAGE, 0)],
        [(PAGE, SIZE)],
    ],
)
def test_areas_that_are_not_in_the_region_do_no_harm(
    areas: ServerAreas, file: int, sparse: list[tuple[int, int]]
) -> None:
    os.ftruncate(file, PLACE + SIZE + PAGE)
    areas.offered(info(*sparse), [file])
    for offset in (0, PAGE, SIZE - 1, SIZE, SIZE + PAGE, 2**63, 2**64 - 1):
        areas.put(change(offset, b"x" * PAGE))
    before, region, behind = (
        content(file)[:PLACE],
        content(file)[PLACE:][:SIZE],
        content(file)[PLACE + SIZE :],
    )
    assert (before, behind) == (bytes(PLACE), bytes(PAGE))
    assert set(region) <= set(b"x\0")


def test_a_file_that_is_too_short_or_none_is_done_without(areas: ServerAreas, file: int) -> None:
    os.ftruncate(file, PLACE + PAGE)
    areas.offered(info((0, 2 * PAGE)), [file])
    areas.put(change(0, b"here"))
    assert content(file) == bytes(PLACE + PAGE)
    read, write = os.pipe()
    with ReceivedFds([read, write]):
        os.set_blocking(read, False)
        areas.offered(info((0, PAGE)), [write])
        areas.put(change(0, b"here"))
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
    areas.offered(info((0, PAGE)), [])
    areas.offered(memoryview(b"nonsense"), [file])
    areas.put(change(0, b"here"))


def test_a_file_on_fuse_is_done_without(
    areas: ServerAreas, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc, "filesystem_type", lambda _fd: 0x65735546)  # FUSE_SUPER_MAGIC of linux/magic.h
    areas.offered(info((0, PAGE)), [file])
    areas.put(change(0, b"here"))
    assert not any(content(file))


def test_a_file_that_cannot_be_written_is_done_without(areas: ServerAreas, file: int) -> None:
    with ReceivedFds([os.open(f"/proc/self/fd/{file}", os.O_RDONLY)]) as fds:
        areas.offered(info((0, PAGE)), fds.numbers)
    areas.put(change(0, b"here"))
    assert not any(content(file))


class Board(RegisterDevice):
    """BAR3 by message is what is in its file."""

    def __init__(self) -> None:
        super().__init__()
        self.share_bar3()

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        return os.pread(self.shared_fd, count, offset)


async def draw(client: VfioUserClient, _fd: int) -> None:
    """Write through the file of BAR3 as through a mapping, and read by message."""
    info, fds = await client.get_region_info(BAR3)
    with fds:
        (fd,) = fds.numbers
        for byte in (b"x", b"y"):
            os.pwrite(fd, byte * PAGE, info.offset + PAGE)
            assert await client.region_read(BAR3, PAGE + 5, 4) == byte * 4


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("recorded_by", TRANSPORTS)
async def test_what_a_client_drew_and_read_by_message_is_read_again(
    tmp_path: Path, recorded_by: str, transport: str
) -> None:
    trace = await record(tmp_path, Board(), draw, transport=recorded_by)
    report = await replayed(trace, Board(), transport=transport)
    assert report.same, report.first


async def test_what_a_server_without_the_area_reads_is_a_divergence_and_no_error(tmp_path: Path) -> None:
    trace = await record(tmp_path, Board(), draw)
    report = await replayed(trace, RegisterDevice())
    assert not report.same


PICTURE = b"picture!" * (PAGE // 8)


async def draw_picture(client: VfioUserClient, _fd: int) -> None:
    info, fds = await client.get_region_info(BAR3)
    with fds:
        os.pwrite(fds.numbers[0], PICTURE, info.offset + PAGE)


async def test_a_content_that_is_not_in_the_file_is_an_error(tmp_path: Path) -> None:
    trace = await record(tmp_path, Board(), draw_picture)
    data = bytearray(trace.read_bytes())
    stored = data.index(pack_content(digest(PICTURE), PICTURE)[:20])
    data[stored + 4] ^= 1
    trace.write_bytes(data)
    with pytest.raises(TraceError, match=r"0x1000\+0x1000 is not in this file"):
        await replayed(trace, Board())
