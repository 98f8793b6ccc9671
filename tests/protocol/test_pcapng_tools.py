"""pcapng files against Wireshark's tools: they read what is written, and what they write is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from struct import pack

import pytest

from protocol import pcapng
from protocol.pcapng import LINKTYPE_USER0, LINKTYPE_USER1, Direction, Interface, Packet, Section
from tests.protocol.test_pcapng import BLOCKS, FILE, TIME, Hand, either_order, only_packet, read

SECOND = 10**9
ENCAPSULATIONS = {LINKTYPE_USER0: 45, LINKTYPE_USER1: 46}
"""WTAP_ENCAP_USER0 and WTAP_ENCAP_USER1 (wiretap/wtap.h)."""
WIRESHARKS_LONGEST = 256 << 10
"""WTAP_MAX_PACKET_SIZE_STANDARD (wiretap/wtap.h): a file with a longer packet, Wireshark takes for damaged."""
DIRECTIONS = {"": Direction.UNKNOWN, "0x00000001": Direction.INBOUND, "0x00000002": Direction.OUTBOUND}
PACKETS = [block for block in BLOCKS if isinstance(block, Packet)]
FIELDS = ("frame.time_epoch", "frame.interface_name", "frame.encap_type", "frame.packet_flags_direction")


@dataclass(frozen=True)
class Frame:
    """What tshark says of a packet."""

    time: int
    interface: str
    encapsulation: int
    direction: Direction
    comment: str
    data: bytes


def run(*command: str | Path) -> str:
    """What one of Wireshark's tools prints. Fails the test where it is missing, or complains."""
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is missing: apt-get install tshark")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=False, timeout=600, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def frames_of(file: Path) -> list[Frame]:
    wanted = [part for name in (*FIELDS, "frame.comment") for part in ("-e", name)]
    lines = run("tshark", "-r", file, "-T", "fields", "-E", "separator=/t", *wanted).split("\n")[:-1]
    raw = json.loads(run("tshark", "-r", file, "-T", "jsonraw", "-J", "frame"))
    data = [bytes.fromhex(frame["_source"]["layers"]["frame_raw"][0]) for frame in raw]
    frames = []
    for line, one in zip(lines, data, strict=True):
        time, interface, encapsulation, direction, comment = line.split("\t")
        seconds, fraction = time.split(".")
        nanoseconds = int(seconds) * SECOND + int(fraction.ljust(9, "0"))
        frames.append(Frame(nanoseconds, interface, int(encapsulation), DIRECTIONS[direction], comment, one))
    return frames


def read_by_us(file: Path) -> list[Frame]:
    interfaces: list[Interface] = []
    frames = []
    for block in read(file.read_bytes()):
        if isinstance(block, Section):
            interfaces = []
        elif isinstance(block, Interface):
            interfaces.append(block)
        else:
            assert block.whole
            by = interfaces[block.interface]
            encapsulation = ENCAPSULATIONS[by.link_type]
            frames.append(
                Frame(block.timestamp, by.name, encapsulation, block.direction, block.comment, block.data)
            )
    return frames


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ours.pcapng"
    file.write_bytes(FILE)
    return file


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    return tmp_path / "edited.pcapng"


def test_tshark_reads_what_is_written(file: Path) -> None:
    assert frames_of(file) == [
        Frame(TIME, "messages", 45, Direction.INBOUND, '{"fds":[]}', b"a message"),
        Frame(TIME + 1, "events", 46, Direction.UNKNOWN, "", b"event"),
        Frame(TIME + 2, "messages", 45, Direction.OUTBOUND, "é\u2028🖥", b""),
    ]
    assert read_by_us(file) == frames_of(file)


def test_tshark_reads_every_section_of_a_file(file: Path) -> None:
    file.write_bytes(FILE + FILE)
    assert frames_of(file) == read_by_us(file)
    assert len(frames_of(file)) == 2 * len(PACKETS)


def test_tshark_reads_a_message_as_long_as_it_can_read(file: Path) -> None:
    data = bytes(range(256)) * (WIRESHARKS_LONGEST // 256)
    file.write_bytes(FILE + pcapng.packet(0, TIME, data, Direction.INBOUND))
    assert frames_of(file)[-1].data == data


def test_capinfos_finds_nothing_wrong(file: Path) -> None:
    said = run("capinfos", file)
    assert "Capture application: tests" in said
    assert "File timestamp precision:  nanoseconds (9)" in said
    assert "Number of packets:   3" in said
    assert "USER 0 (2)" in said
    assert "USER 1 (1)" in said
    assert "Strict time order:   True" in said


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ((), [0, 1, 2]),
        (("-r", "2-3"), [1, 2]),
        (("1",), [1, 2]),
    ],
)
def test_what_editcap_keeps_is_read(
    file: Path, edited: Path, arguments: tuple[str, ...], kept: list[int]
) -> None:
    options, chosen = arguments[:-1], arguments[-1:]
    run("editcap", *options, "-F", "pcapng", file, edited, *chosen)
    assert read_by_us(edited) == [read_by_us(file)[index] for index in kept]
    assert read_by_us(edited) == frames_of(edited)


def test_a_comment_of_editcaps_is_read_where_there_was_none(file: Path, edited: Path) -> None:
    run("editcap", "-a", "2:added", "-a", "1:another", file, edited)
    assert [frame.comment for frame in read_by_us(edited)] == ['{"fds":[]}', "added", "é\u2028🖥"]


def test_times_that_editcap_moved_are_read(file: Path, edited: Path) -> None:
    run("editcap", "-t", "0.000000005", file, edited)
    assert [frame.time for frame in read_by_us(edited)] == [TIME + 5, TIME + 6, TIME + 7]


def test_packets_that_editcap_shortened_are_not_whole(file: Path, edited: Path) -> None:
    run("editcap", "-s", "5", file, edited)
    blocks = [block for block in read(edited.read_bytes()) if isinstance(block, Packet)]
    assert [block.data for block in blocks] == [b"a mes", b"event", b""]
    assert [block.whole for block in blocks] == [False, True, True]


@pytest.mark.parametrize(("kind", "unit"), [("pcap", 1000), ("nsecpcap", 1)])
def test_what_was_converted_from_another_format_is_read(
    kind: str, unit: int, file: Path, edited: Path, tmp_path: Path
) -> None:
    packets = [pcapng.packet(0, TIME + number, b"data") for number in range(3)]
    file.write_bytes(b"".join([pcapng.section(""), pcapng.interface(LINKTYPE_USER0, ""), *packets]))
    run("editcap", "-F", kind, file, tmp_path / "other")
    run("editcap", "-F", "pcapng", tmp_path / "other", edited)
    times = [(TIME + number) // unit * unit for number in range(3)]
    assert [(frame.time, frame.data) for frame in read_by_us(edited)] == [(time, b"data") for time in times]


@either_order
@pytest.mark.parametrize(
    ("resolution", "ticks", "expected"),
    [
        (None, 1_700_000_000_123_456, 1_700_000_000_123_456_000),
        (0, 1_700_000_000, 1_700_000_000 * SECOND),
        (3, 1_700_000_000_123, 1_700_000_000_123_000_000),
        (9, TIME, TIME),
        (12, 1_700_000_000_123_456, 1_700_000_000_123),
        (0x80, 1_700_000_000, 1_700_000_000 * SECOND),
        (0x8A, (1_700_000_000 << 10) + 512, 1_700_000_000_500_000_000),
        (0xA0, (1_700_000_000 << 32) + (1 << 30), 1_700_000_000_250_000_000),
    ],
)
def test_timestamps_of_any_resolution_are_read_as_tshark_reads_them(
    hand: Hand, resolution: int | None, ticks: int, expected: int, file: Path
) -> None:
    options = b"" if resolution is None else hand.option(9, bytes([resolution]))
    file.write_bytes(hand.section() + hand.interface(options) + hand.packet(ticks, b"x"))
    assert only_packet(file.read_bytes()).timestamp == expected
    assert [frame.time for frame in frames_of(file)] == [expected]


@either_order
@pytest.mark.parametrize("seconds", [1_600_000_000, -3600])
def test_an_offset_of_timestamps_is_added(hand: Hand, seconds: int, file: Path) -> None:
    options = hand.option(9, b"\x09") + hand.option(14, pack(hand.order + "q", seconds))
    file.write_bytes(hand.section() + hand.interface(options) + hand.packet(4000 * SECOND + 5, b"x"))
    expected = (4000 + seconds) * SECOND + 5
    assert only_packet(file.read_bytes()).timestamp == expected
    assert [frame.time for frame in frames_of(file)] == [expected]


@either_order
def test_tshark_reads_the_direction_and_the_comment_of_either_byte_order(hand: Hand, file: Path) -> None:
    options = hand.option(2, pack(hand.order + "I", 2)) + hand.option(1, b"said") + hand.option(0)
    start = hand.section() + hand.interface(hand.option(2, b"name"), LINKTYPE_USER1)
    file.write_bytes(start + hand.packet(7, b"12345", options))
    assert frames_of(file) == [Frame(7000, "name", 46, Direction.OUTBOUND, "said", b"12345")]
    assert read_by_us(file) == frames_of(file)
