"""What readers of a trace say of changes in mapped areas, and of what is no message."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import Command, DeviceReset
from protocol.pcapng import LINKTYPE_USER2, Direction, interface, packet
from protocol.trace import (
    AREA_CHANGE,
    STORED,
    EventFlags,
    Malformed,
    SessionInfo,
    TraceError,
    digest,
    pack_content,
    pack_look,
)
from server.cli import main
from server.trace.diff.sides import Side
from server.trace.export.json_lines import export_json
from server.trace.fd_facts import MessageFacts
from server.trace.reader import TracedLook, TracedMalformed, TraceReader
from tests.server.trace.show_files import EVENTFD, START, TraceFile
from tests.server.trace.showing import show

BOCHS = SessionInfo("vgpud serve", "bochs-display", "native", memory=True, interrupts=True, areas=True)
PAGE = bytes(range(256)) * 16
REASON = "a message of 3 bytes is shorter than its header"
BROKEN = bytes(range(20))


class Trace(TraceFile):
    """With a third interface."""

    def session(self, info: SessionInfo = BOCHS, at: int = 0) -> Trace:
        super().session(info, at)
        self.blocks.append(interface(LINKTYPE_USER2, "additions"))
        return self

    def addition(
        self, payload: bytes, at: int = 0, direction: Direction = Direction.UNKNOWN, said: str = ""
    ) -> Trace:
        self.blocks.append(packet(2, START + at * 1000, payload, direction, said))
        return self


def example(data: bytes = BROKEN, *, looks: bool = True) -> Trace:
    """A message, a look at areas, and what is no message."""
    trace = Trace(BOCHS).request(1, DeviceReset())
    assert isinstance(trace, Trace)
    if looks:
        place = trace.record(2, pack_content(digest(PAGE), PAGE)[4:], 10)
        stored = AREA_CHANGE.pack(0, EventFlags.STORED, len(PAGE), 0x1000) + STORED.pack(digest(PAGE), place)
        trace.addition(pack_look(stored, whole=False), 20)
        trace.addition(pack_look(AREA_CHANGE.pack(0, 0, 4, 0x40) + b"\1\0\0\0", whole=True), 30)
    trace.addition(Malformed(REASON, data).pack(), 40, Direction.INBOUND, json.dumps({"fds": [EVENTFD]}))
    trace.reply(1, Command.DEVICE_RESET, at=50)
    return trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return example().save(tmp_path / "trace")


def test_the_reader_finds_them_in_their_order(path: Path) -> None:
    with TraceReader(path) as reader:
        first, second, malformed = (one for one in reader if isinstance(one, TracedLook | TracedMalformed))
        assert isinstance(first, TracedLook)
        assert isinstance(second, TracedLook)
        assert isinstance(malformed, TracedMalformed)
        assert [reader.data(one) for one in (*first.look.changes, *second.look.changes)] == [
            PAGE,
            b"\1\0\0\0",
        ]
        assert (first.look.whole, second.look.whole) == (False, True)
    assert malformed.malformed == Malformed(REASON, BROKEN)
    assert malformed.inbound
    assert malformed.time == START + 40_000
    assert [facts.kind for facts in malformed.facts.fds] == ["eventfd"]


def test_records_of_kinds_that_are_not_known_are_skipped_where_they_may_be(tmp_path: Path) -> None:
    trace = example()
    trace.addition(b"\x63\0\0\0what is it").request(2, DeviceReset())
    assert main(["trace", "show", str(trace.save(tmp_path / "trace"))]) == 0
    with TraceReader(tmp_path / "trace") as reader:
        assert len(list(reader)) == 7


@pytest.mark.parametrize(
    "payload", [b"\5\0\0\0", b"\4\0\0\0", b"\5\0\0", b"", pack_look(bytes(15), whole=True)]
)
def test_a_record_that_is_cut_off_is_damage(tmp_path: Path, payload: bytes) -> None:
    trace = example().addition(payload).save(tmp_path / "trace")
    with TraceReader(trace) as reader, pytest.raises(TraceError, match="damaged at byte"):
        list(reader)


def test_a_change_whose_bytes_are_not_in_the_file_is_an_error_that_says_where(tmp_path: Path) -> None:
    change = AREA_CHANGE.pack(0, EventFlags.STORED, 9, 0x5000) + STORED.pack(bytes(16), 2**64 - 1)
    trace = example(looks=False).addition(pack_look(change, whole=True)).save(tmp_path / "trace")
    with TraceReader(trace) as reader:
        (look,) = (one.look for one in reader if isinstance(one, TracedLook))
        with pytest.raises(TraceError, match=r"0x5000\+0x9 is not in this file"):
            reader.data(look.changes[0])


def test_show_says_what_is_no_message_and_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(path, capsys)
    assert lines[0].endswith("with guest memory and interrupts; with mapped areas")
    assert [line.split()[0] for line in (lines[1], lines[3])] == ["1", "2"]
    assert lines[2] == (
        f"{'':6}    0.000040 -> {'malformed':<24} {REASON}; {BROKEN[:16].hex()}... (20 bytes) with eventfd"
    )
    assert len(lines) == 4


def test_show_with_events_says_what_was_in_mapped_areas(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"{'':6}    0.0000"
    assert show(path, capsys, "--events")[2:5] == [
        f"{start}20    {'mapped write':<24} BAR0 0x1000-0x1fff (4 KiB) {PAGE[:16].hex()}...",
        f"{start}30    {'mapped write':<24} BAR0 0x40-0x43 (4 bytes) 0x00000001",
        f"{start}30    {'mapped areas':<24} looked at",
    ]


def test_a_change_whose_bytes_are_not_there_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = AREA_CHANGE.pack(9, EventFlags.STORED, 9, 2**64 - 1) + STORED.pack(bytes(16), 5)
    trace = example(looks=False).addition(pack_look(change, whole=False)).save(tmp_path / "trace")
    assert "region 9 0xffffffffffffffff" in show(trace, capsys, "--events")[-1]
    assert "not in this file" in show(trace, capsys, "--events")[-1]


@pytest.mark.parametrize(
    ("options", "there"),
    [
        (["--errors"], True),
        (["--since", "0"], True),
        (["--since", "1"], False),
        (["--command", "DEVICE_RESET"], False),
        (["--region", "BAR0"], False),
    ],
)
def test_what_is_no_message_is_an_error_without_a_command(
    path: Path, capsys: pytest.CaptureFixture[str], options: list[str], there: bool
) -> None:
    assert any("malformed" in line for line in show(path, capsys, *options)) == there


def test_what_a_stranger_sent_is_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = Trace(BOCHS).addition(Malformed("\x1b[2J\n", b"\x1b").pack())
    assert all(line.isprintable() for line in show(trace.save(tmp_path / "trace"), capsys))


def test_statistics_count_them(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(path, capsys, "--stats")
    assert "mapped areas  2 changes of 4100 bytes in 1 look" in lines
    assert "malformed     1" in lines


def objects(path: Path) -> Iterator[dict[str, object]]:
    output = io.StringIO()
    with TraceReader(path) as reader:
        export_json(reader, output)
    return map(json.loads, output.getvalue().splitlines())


def test_they_are_exported_as_json(path: Path) -> None:
    session, _, first, second, look, malformed, _ = objects(path)
    assert session["areas"] is True
    place = {"type": "area", "session": 1, "region": "BAR0", "region_index": 0}
    assert first == {
        **place,
        "time": 0.00002,
        "timestamp": START + 20_000,
        "offset": 0x1000,
        "length": 4096,
        "data": PAGE.hex(),
    }
    assert (second["offset"], second["data"]) == (0x40, "01000000")
    assert look == {"type": "look", "session": 1, "time": 0.00003, "timestamp": START + 30_000}
    assert malformed == {
        "type": "malformed",
        "session": 1,
        "time": 0.00004,
        "timestamp": START + 40_000,
        "direction": "client-to-server",
        "reason": REASON,
        "data": BROKEN.hex(),
        "fds": [{"kind": "eventfd", "device": 16, "inode": 1038}],
    }


def test_show_prints_as_json_what_export_does(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [json.loads(line) for line in show(path, capsys, "--json", "--events")]
    exported = list(objects(path))
    kinds = ("area", "look", "malformed")
    assert [one for one in shown if one["type"] in kinds] == [one for one in exported if one["type"] in kinds]
    assert [one["type"] for one in map(json.loads, show(path, capsys, "--json"))] == [
        "message",
        "malformed",
        "message",
    ]


def diff(a: Trace, b: Trace, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    status = main(["trace", "diff", str(a.save(folder / "a")), str(b.save(folder / "b"))])
    said = capsys.readouterr()
    assert said.err == ""
    return status, said.out.splitlines()


def test_what_was_in_mapped_areas_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(example(), example(looks=False), tmp_path, capsys)[0] == 0


def test_what_is_no_message_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = diff(example(), example(b"other"), tmp_path, capsys)
    assert status == 1
    assert [line[0] for line in lines if "malformed" in line] == ["~", "~"]
    assert any(line.endswith("[other bytes]") for line in lines)
    without = Trace(BOCHS).request(1, DeviceReset()).reply(1, Command.DEVICE_RESET, at=50)
    assert isinstance(without, Trace)
    status, lines = diff(example(), without, tmp_path, capsys)
    assert status == 1
    assert [line[0] for line in lines if "malformed" in line] == ["-"]


def test_what_is_no_message_is_counted_where_traces_are_read_anew_to_find_where_they_meet(path: Path) -> None:
    with TraceReader(path) as reader:
        side = Side(reader)
        all_of_it = [meaning.digest for meaning in side.all()]
        assert len(all_of_it) == 4  # the session, the messages, and what is none
        for taken in range(4):
            assert list(side.digests()) == all_of_it[taken:]
            side.take()


def test_facts_say_which_socket_it_came_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = MessageFacts(twin=True).pack()
    trace = Trace(BOCHS).addition(Malformed(REASON, b"").pack(), 0, Direction.OUTBOUND, said)
    (line,) = show(trace.save(tmp_path / "trace"), capsys)[1:]
    assert "<- malformed" in line
    assert line.endswith("[twin]")
