"""A trace that does not say which device it is of is known by what the client read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol import (
    Command,
    GetRegionInfo,
    PciRegion,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    encode_reply,
    encode_request,
)
from protocol.pcapng import Direction
from protocol.trace import SessionInfo
from server.cli import main
from server.trace.export.known_device import known_device
from server.trace.reader import TraceReader
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing

BOCHS = bytes.fromhex("34121111")
"""Vendor and device as docs/specs/standard-vga.rst of QEMU has them."""
VIRTIO_GPU = bytes.fromhex("f41a5010")
CONFIG, BAR0, BAR2 = PciRegion.CONFIG, PciRegion.BAR0, PciRegion.BAR2


def write(path: Path, *sessions: Sequence[RegionInfo | RegionReadReply]) -> Path:
    """Sessions of a proxy in which the client asked, and was answered so."""
    ring = TraceRing(path)
    for replies in sessions:
        recorder = Recorder(ring, SessionInfo("a proxy"))
        recorder.start()
        for reply in replies:
            if isinstance(reply, RegionInfo):
                request, command = (
                    encode_request(1, GetRegionInfo(reply.index)),
                    Command.DEVICE_GET_REGION_INFO,
                )
            else:
                read = RegionRead(reply.offset, reply.region, len(reply.data))
                request, command = encode_request(1, read), Command.REGION_READ
            recorder.message(Direction.INBOUND, request)
            recorder.message(Direction.OUTBOUND, encode_reply(1, command, reply))
    ring.close()
    return path


def info(index: int, size: int) -> RegionInfo:
    return RegionInfo(index, RegionFlags.READ | RegionFlags.MMAP, size)


def known(path: Path, number: int = 1) -> str | None:
    with TraceReader(path) as reader:
        found = known_device(reader, number)
    return None if found is None else found.device


@pytest.mark.parametrize(
    "reads",
    [
        [RegionReadReply(0, CONFIG, BOCHS + bytes(252))],
        [RegionReadReply(0, CONFIG, BOCHS[:2]), RegionReadReply(2, CONFIG, BOCHS[2:])],
        [RegionReadReply(2, CONFIG, BOCHS[2:]), RegionReadReply(0, CONFIG, BOCHS)],
    ],
)
def test_a_bochs_display_is_known_by_its_ids_and_its_framebuffer(
    tmp_path: Path, reads: list[RegionReadReply]
) -> None:
    trace = write(tmp_path / "trace", [info(BAR2, 4096), info(BAR0, 8 << 20), *reads])
    assert known(trace) == f"bochs-display,vgamem={8 << 20}"


@pytest.mark.parametrize(
    "replies",
    [
        [],
        [info(BAR0, 8 << 20)],
        [RegionReadReply(0, CONFIG, BOCHS)],
        [info(BAR2, 8 << 20), RegionReadReply(0, CONFIG, BOCHS)],
        [info(BAR0, 8 << 20), RegionReadReply(0, BAR2, BOCHS)],
        [info(BAR0, 8 << 20), RegionReadReply(0, CONFIG, VIRTIO_GPU)],
        [info(BAR0, 8 << 20), RegionReadReply(0, CONFIG, BOCHS[:3])],
    ],
)
def test_nothing_else_is_taken_for_one(tmp_path: Path, replies: list[RegionInfo | RegionReadReply]) -> None:
    assert known(write(tmp_path / "trace", replies)) is None


def test_what_another_session_says_does_not_count(tmp_path: Path) -> None:
    display: list[RegionInfo | RegionReadReply] = [info(BAR0, 8 << 20), RegionReadReply(0, CONFIG, BOCHS)]
    trace = write(tmp_path / "trace", [info(BAR0, 4096)], display, [RegionReadReply(0, CONFIG, BOCHS)])
    assert [known(trace, number) is not None for number in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize("size", [1, (8 << 20) + 1, 1 << 40])
def test_a_framebuffer_that_cannot_be_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    trace = write(tmp_path / "trace", [info(BAR0, size), RegionReadReply(0, CONFIG, BOCHS)])
    assert main(["trace", "export", "--frames", str(tmp_path / "frames"), str(trace)]) == 1
    said = capsys.readouterr().err
    assert f"vgamem={size}" in said
    assert said.count("\n") == 1
