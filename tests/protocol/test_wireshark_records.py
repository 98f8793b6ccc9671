"""The dissector for Wireshark shows what happened beside the messages: the second interface of a trace."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from protocol import trace
from protocol.pcapng import Direction
from protocol.trace import (
    AREA_CHANGE,
    EVENT,
    STORED,
    Access,
    EventFlags,
    EventKind,
    Interrupt,
    RecordKind,
    SessionInfo,
)
from tests.protocol.strategies import data, u16, u64
from tests.protocol.tshark import Capture, Row, record_capture, rows, tshark
from tests.protocol.wireshark_examples import draw

HASH = bytes(range(16))
lengths = st.integers(0, trace.MAX_CONTENT)


def fields_of(row: Row) -> Row:
    return {name: values for name, values in row.items() if values and name.startswith("vgpud.")}


@st.composite
def events(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(EventKind))
    if kind is EventKind.INTERRUPT:
        return EVENT.pack(kind, 0, draw(u16), 0, draw(u64))
    if draw(st.booleans()):
        length = draw(lengths)
        stored = STORED.pack(draw(st.binary(min_size=16, max_size=16)), draw(u64))
        in_place = EventFlags.IN_PLACE if kind is EventKind.READ and draw(st.booleans()) else 0
        return EVENT.pack(kind, EventFlags.STORED | in_place, 0, length, draw(u64)) + stored
    content = draw(data)
    return EVENT.pack(kind, 0, 0, len(content), draw(u64)) + content


def expected(payload: bytes) -> Row:
    """What our decoder makes of events."""
    shown: Row = {"vgpud.kind": [RecordKind.EVENTS]}
    for event in trace.unpack_events(trace.unpack(payload)[1]):
        match event:
            case Interrupt(index, vector):
                kind = EventKind.INTERRUPT
                rest: Row = {"vgpud.event.index": [index], "vgpud.event.vector": [vector]}
                in_place = False
            case Access(write, address, length, content, digest, place, in_place):
                kind = EventKind.WRITE if write else EventKind.READ
                rest = {"vgpud.event.address": [address], "vgpud.event.length": [length]}
                if content is None:
                    rest |= {"vgpud.event.hash": [digest], "vgpud.event.place": [place]}
                elif content:
                    rest |= {"vgpud.event.data": [content]}
        stored = "vgpud.event.hash" in rest
        rest |= {
            "vgpud.event.kind": [kind],
            "vgpud.event.flags": [stored | in_place << 1],
            "vgpud.event.flags.stored": [stored],
            "vgpud.event.flags.in_place": [in_place],
        }
        for name, values in rest.items():
            shown[name] = shown.get(name, []) + values
    return shown


def test_every_field_of_every_event_is_what_the_decoder_reads(tmp_path: Path) -> None:
    records = [trace.pack_events(b"".join(some)) for some in draw(st.lists(events(), max_size=12), 300)]
    assert sum(map(len, records)) > 10000
    for record, row in zip(records, rows(record_capture(records, tmp_path / "file.pcapng")), strict=True):
        assert fields_of(row) == expected(record)
        assert row["_ws.expert.severity"] == row["_ws.malformed"] == []
        assert row["_ws.col.Protocol"] == ["VGPUD"]


def test_a_content_has_its_hash_and_length(tmp_path: Path) -> None:
    record = trace.pack_content(HASH, b"hello")
    [row] = rows(record_capture([record], tmp_path / "file.pcapng"))
    assert fields_of(row) == {
        "vgpud.kind": [RecordKind.CONTENT],
        "vgpud.content.hash": [HASH],
        "vgpud.content.length": [5],
        "vgpud.content.compressed": [record[24:]],
    }
    assert row["_ws.col.Info"] == ["CONTENT 5 bytes"]


def test_a_session_is_shown_as_json(tmp_path: Path) -> None:
    session = SessionInfo("tests", "virtio-gpu", memory=True)
    file = record_capture([session.pack()], tmp_path / "file.pcapng")
    [row] = rows(file)
    assert [json.loads(str(value))["device"] for value in row["vgpud.session"]] == ["virtio-gpu"]
    assert row["_ws.col.Info"] == ["SESSION"]
    assert "recorder" in tshark(file, "-T", "fields", "-e", "json.key").split(",")


def test_an_event_leads_to_the_content_that_it_refers_to(tmp_path: Path) -> None:
    stored = EVENT.pack(EventKind.WRITE, EventFlags.STORED, 0, 5, 0x2000)
    records = [
        trace.pack_content(bytes(16), b"other"),
        trace.pack_content(HASH, b"hello"),
        trace.pack_events(stored + STORED.pack(HASH, 99)),
        trace.pack_events(stored + STORED.pack(b"x" * 16, 99)),
    ]
    shown = rows(record_capture(records, tmp_path / "file.pcapng"), "-2")
    assert [row["vgpud.event.content_in"] for row in shown] == [[], [], [2], []]


def test_the_info_column_lists_the_first_events(tmp_path: Path) -> None:
    interrupt = EVENT.pack(EventKind.INTERRUPT, 0, 2, 0, 7)
    read = EVENT.pack(EventKind.READ, 0, 0, 3, 0x1000) + b"abc"
    records = [trace.pack_events(read + interrupt), trace.pack_events(interrupt * 10)]
    shown = rows(record_capture(records, tmp_path / "file.pcapng"))
    assert shown[0]["_ws.col.Info"] == ["EVENTS READ 0x1000+0x3, INTERRUPT MSIX 7"]
    assert str(shown[1]["_ws.col.Info"]).count("MSIX 7") == 8
    assert "and 2 more" in str(shown[1]["_ws.col.Info"])


@st.composite
def changes(draw: st.DrawFn) -> bytes:
    region, offset = draw(u16), draw(u64)
    if draw(st.booleans()):
        stored = STORED.pack(draw(st.binary(min_size=16, max_size=16)), draw(u64))
        return AREA_CHANGE.pack(region, EventFlags.STORED, draw(lengths), offset) + stored
    content = draw(data)
    return AREA_CHANGE.pack(region, 0, len(content), offset) + content


def expected_look(payload: bytes) -> Row:
    """What our decoder makes of a look at mappable areas."""
    look = trace.unpack_look(trace.unpack(payload)[1])
    shown: Row = {"vgpud.kind": [RecordKind.AREAS], "vgpud.areas.whole": [look.whole]}
    for change in look.changes:
        stored = change.data is None
        rest: Row = {
            "vgpud.area.region": [change.region],
            "vgpud.area.flags": [int(stored)],
            "vgpud.area.flags.stored": [stored],
            "vgpud.area.length": [change.length],
            "vgpud.area.offset": [change.offset],
        }
        if stored:
            rest |= {"vgpud.area.hash": [change.digest], "vgpud.area.place": [change.place]}
        elif change.data:
            rest |= {"vgpud.area.data": [change.data]}
        for name, values in rest.items():
            shown[name] = shown.get(name, []) + values
    return shown


def test_every_field_of_every_change_of_an_area_is_what_the_decoder_reads(tmp_path: Path) -> None:
    capture = Capture()
    looks = draw(st.tuples(st.booleans(), st.lists(changes(), max_size=9)), 200)
    records = [trace.pack_look(b"".join(some), whole=whole) for whole, some in looks]
    for record in records:
        capture.addition(record)
    for record, row in zip(records, rows(capture.write(tmp_path / "file.pcapng")), strict=True):
        assert fields_of(row) == expected_look(record)
        assert row["_ws.expert.severity"] == row["_ws.malformed"] == []
        assert row["_ws.col.Protocol"] == ["VGPUD"]


def test_a_change_of_an_area_leads_to_the_content_that_it_refers_to(tmp_path: Path) -> None:
    capture = Capture()
    capture.record(trace.pack_content(HASH, b"hello"))
    change = AREA_CHANGE.pack(0, EventFlags.STORED, 5, 0x1000) + STORED.pack(HASH, 99)
    capture.addition(trace.pack_look(change + AREA_CHANGE.pack(2, 0, 1, 7) + b"x", whole=True))
    _, row = rows(capture.write(tmp_path / "file.pcapng"), "-2")
    assert row["vgpud.area.content_in"] == [1]
    assert row["_ws.col.Info"] == ["AREAS BAR0 0x1000+0x5, BAR2 0x7+0x1 (whole)"]


def test_what_is_no_message_is_malformed_for_the_reason_that_was_recorded(tmp_path: Path) -> None:
    capture = Capture()
    reason = "a message of 3 bytes is shorter than its header"
    capture.addition(trace.Malformed(reason, b"\x09\0what came").pack(), Direction.INBOUND)
    [row] = rows(capture.write(tmp_path / "file.pcapng"))
    assert fields_of(row) == {
        "vgpud.kind": [RecordKind.MALFORMED],
        "vgpud.framing.reason": [reason],
        "vgpud.framing.received": [b"\x09\0what came"],
        "vgpud.malformed": row["vgpud.malformed"],
    }
    assert row["vgpud.malformed"]
    assert reason in row["_ws.expert.message"]
    assert row["_ws.col.Info"] == [f"MALFORMED 11 bytes [malformed: {reason}]"]


MALFORMED = {
    "empty": b"",
    "kind": b"\1",
    "unknown": b"\6\0\0\0",
    "content": b"\2\0\0\0" + HASH,
    "event": trace.pack_events(EVENT.pack(1, 0, 0, 0, 0)[:-1]),
    "event kind": trace.pack_events(EVENT.pack(4, 0, 0, 0, 0)),
    "data": trace.pack_events(EVENT.pack(1, 0, 0, 4, 0) + b"abc"),
    "change": trace.pack_look(AREA_CHANGE.pack(0, 0, 4, 0)[:-1], whole=True),
    "changed data": trace.pack_look(AREA_CHANGE.pack(0, 0, 4, 0) + b"abc", whole=True),
    "look": b"\5\0\0\0\1\0\0",
    "reason": b"\4\0\0\0\5\0abc",
    "stored": trace.pack_events(EVENT.pack(1, 1, 0, 4, 0) + HASH),
}


def test_what_cannot_be_read_is_malformed(tmp_path: Path) -> None:
    shown = rows(record_capture(MALFORMED.values(), tmp_path / "file.pcapng"))
    for name, row in zip(MALFORMED, shown, strict=True):
        assert row["vgpud.malformed"], name
