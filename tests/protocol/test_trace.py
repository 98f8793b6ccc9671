"""Records of traces: what is written is read, in the layouts that are documented; nothing hostile gets through."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable
from struct import pack
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.trace import (
    AREA_CHANGE,
    EVENT,
    HASH_SIZE,
    MAX_CONTENT,
    MAX_INLINE,
    STORED,
    Access,
    AreaChange,
    AreaLook,
    Content,
    Event,
    EventFlags,
    EventKind,
    Interrupt,
    Malformed,
    RecordKind,
    SessionInfo,
    TraceError,
    digest,
    may_be_skipped,
    pack_content,
    pack_events,
    pack_look,
    unpack,
    unpack_content,
    unpack_events,
    unpack_look,
)

infos = st.builds(
    SessionInfo,
    st.text(),
    st.text(),
    st.text(),
    memory=st.booleans(),
    interrupts=st.booleans(),
    continued=st.booleans(),
    areas=st.booleans(),
    recording=st.text(),
    file=st.integers(0, 2**32),
)
u16, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1)
hashes = st.binary(min_size=HASH_SIZE, max_size=HASH_SIZE)
inline = st.builds(
    lambda write, address, data, in_place: Access(write, address, len(data), data, in_place=in_place),
    st.booleans(),
    u64,
    st.binary(max_size=50),
    st.booleans(),
)
stored = st.builds(
    Access, st.booleans(), u64, st.integers(0, MAX_CONTENT), st.none(), hashes, u64, st.booleans()
)
events: st.SearchStrategy[Event] = inline | stored | st.builds(Interrupt, u16, u64)

area_changes = st.builds(
    lambda region, offset, data: AreaChange(region, offset, len(data), data), u16, u64, st.binary(max_size=50)
) | st.builds(AreaChange, u16, u64, st.integers(0, MAX_CONTENT), st.none(), hashes, u64)


def packed_change(change: AreaChange) -> bytes:
    """A change of a mappable area as the docstring of the module has it."""
    head = pack("<HHIQ", change.region, change.data is None, change.length, change.offset)
    return head + (pack("<16sQ", change.digest, change.place) if change.data is None else change.data)


def packed(event: Event) -> bytes:
    """An event as the docstring of the module has it."""
    if isinstance(event, Interrupt):
        return pack("<BBHIQ", 3, 0, event.index, 0, event.vector)
    flags = (event.data is None) | event.in_place << 1
    head = pack("<BBHIQ", 2 if event.write else 1, flags, 0, event.length, event.address)
    return head + (pack("<16sQ", event.digest, event.place) if event.data is None else event.data)


def rest_of(payload: bytes, kind: RecordKind) -> memoryview:
    found, rest = unpack(payload)
    assert found is kind
    return rest


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(TraceError) as caught:
        read()
    return check_text(caught.value)


def check_text(error: TraceError) -> str:
    text = str(error)
    assert text == text.strip()
    assert 0 < len(text) < 200
    assert text.isprintable()
    return text


def content_of(data: bytes, *, length: int | None = None, key: bytes | None = None) -> bytes:
    """A content without its kind, whose length and hash may be wrong."""
    size = len(data) if length is None else length
    return pack("<16sI", digest(data) if key is None else key, size) + zlib.compress(data)


@given(infos)
def test_a_session_is_read_as_it_was_written(info: SessionInfo) -> None:
    assert SessionInfo.unpack(rest_of(info.pack(), RecordKind.SESSION)) == info


def test_a_session_is_json_behind_its_kind() -> None:
    payload = SessionInfo("vgpud serve", "virtio-gpu", "native", memory=True, recording="a", file=3).pack()
    assert payload[:4] == b"\x01\0\0\0"
    assert json.loads(payload[4:]) == {
        "recorder": "vgpud serve",
        "device": "virtio-gpu",
        "transport": "native",
        "memory": True,
        "interrupts": False,
        "continued": False,
        "areas": False,
        "recording": "a",
        "file": 3,
    }


def test_what_a_session_does_not_say_is_unknown_and_what_is_unknown_is_skipped() -> None:
    assert SessionInfo.unpack(b'{"recorder": "other", "color": [1]}') == SessionInfo("other")
    assert SessionInfo.unpack(b"{}") == SessionInfo("")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b"\xff{}",
        b"{}{}",
        b'{"recorder": 1}',
        b'{"recorder": null}',
        b'{"recorder": ["a"]}',
        b'{"memory": 1}',
        b'{"memory": "true"}',
        b'{"file": true}',
        b'{"file": "1"}',
        b'{"continued": null}',
        b'{"device": NaN}',
        b'{"device": ' + b"9" * 5000 + b"}",
        b'{"device": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"device": ' + b"[" * 800 + b"]" * 800 + b"}",
        b'{"device":' * 6000 + b"1" + b"}" * 6000,
        b'{"recorder": "' + b"a" * (64 << 10) + b'"}',
    ],
)
def test_a_session_that_is_no_json_object_of_the_right_types_is_refused(payload: bytes) -> None:
    refused(lambda: SessionInfo.unpack(payload))


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats() | st.integers(), st.lists), st.data())
def test_a_session_of_any_other_type_is_refused(value: Any, data: st.DataObject) -> None:
    name, kind = data.draw(st.sampled_from([("recorder", str), ("device", str), ("memory", bool)]))
    payload = json.dumps({name: value}).encode()
    if isinstance(value, kind):
        assert getattr(SessionInfo.unpack(payload), name) == value
    else:
        refused(lambda: SessionInfo.unpack(payload))


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", "cae66941d9efbd404e4d88758ea67670"), (b"abc", "cf4ab791c62b8d2b2109c90275287816")],
)
def test_contents_are_found_by_what_b2sum_says_of_128_bits(data: bytes, expected: str) -> None:
    assert digest(data).hex() == expected


@given(st.binary(max_size=5000), st.sampled_from([1, MAX_CONTENT // 5000]))
@example(bytes(range(256)), MAX_CONTENT // 256)
def test_a_content_is_read_as_it_was_written(pattern: bytes, times: int) -> None:
    data = pattern * times
    payload = pack_content(digest(data), memoryview(data))
    assert unpack_content(rest_of(payload, RecordKind.CONTENT)) == Content(digest(data), data)


def test_a_content_is_a_zlib_stream_behind_its_hash_and_length() -> None:
    data = b"0123456789"
    stream = b"\x78\x01\x01" + pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    stream += pack(">I", zlib.adler32(data))
    head = b"\x02\0\0\0" + digest(data) + b"\x0a\0\0\0"
    assert unpack_content(rest_of(head + stream, RecordKind.CONTENT)).data == data
    ours = pack_content(digest(data), data)
    assert ours.startswith(head)
    assert zlib.decompress(ours[len(head) :]) == data


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(19),
        bytes(20),
        content_of(b"data", length=3),
        content_of(b"data", length=5),
        content_of(b"data", length=0),
        content_of(b"", length=1),
        content_of(b"data", length=2**32 - 1),
        content_of(b"data", key=digest(b"date")),
        content_of(bytes(MAX_CONTENT + 1)),
        content_of(b"data" * 100)[:-20],
        pack("<16sI", digest(b"data"), 4) + b"no zlib",
        pack("<16sI", digest(b"data"), 4) + zlib.compress(b"data")[2:],
        pack("<16sI", digest(b"data"), 4) + b"\x78\x20" + bytes(4) + b"\x01\x04\0\xfb\xffdata",
    ],
)
def test_a_content_that_is_not_what_it_says_is_refused(payload: bytes) -> None:
    refused(lambda: unpack_content(payload))


def test_a_content_does_not_unpack_to_more_than_it_says() -> None:
    bomb = zlib.compressobj(9)
    megabyte = bytes(1 << 20)
    stream = b"".join([*(bomb.compress(megabyte) for _ in range(64)), bomb.flush()])
    payload = pack("<16sI", digest(bytes(MAX_CONTENT)), MAX_CONTENT) + stream
    assert len(payload) < MAX_CONTENT * 2
    tracemalloc.start()
    try:
        refused(lambda: unpack_content(payload))
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_CONTENT
    finally:
        tracemalloc.stop()


@given(st.lists(events))
def test_events_are_read_in_the_layout_that_is_documented(all_events: list[Event]) -> None:
    payload = pack_events(b"".join(map(packed, all_events)))
    assert payload[:4] == b"\x03\0\0\0"
    assert list(unpack_events(rest_of(payload, RecordKind.EVENTS))) == all_events


def test_the_structures_of_events_are_those_that_are_documented() -> None:
    assert EVENT.pack(EventKind.INTERRUPT, 0, 2, 0, 7) == packed(Interrupt(2, 7))
    access = Access(write=True, address=2**63, length=9, data=None, digest=bytes(range(16)), place=2**40)
    ours = EVENT.pack(EventKind.WRITE, EventFlags.STORED, 0, 9, 2**63) + STORED.pack(bytes(range(16)), 2**40)
    assert ours == packed(access)
    looked = Access(write=False, address=1, length=1, data=b"x", in_place=True)
    assert EVENT.pack(EventKind.READ, EventFlags.IN_PLACE, 0, 1, 1) + b"x" == packed(looked)


@given(st.lists(events, min_size=1, max_size=5), st.data())
def test_events_that_are_cut_off_are_refused_behind_the_whole_ones(
    all_events: list[Event], data: st.DataObject
) -> None:
    sizes = [len(packed(event)) for event in all_events]
    cut = data.draw(st.integers(1, sizes[-1] - 1))
    reading = unpack_events(b"".join(map(packed, all_events))[:-cut])
    assert [next(reading) for _ in all_events[:-1]] == all_events[:-1]
    refused(lambda: next(reading))


@pytest.mark.parametrize(
    "payload",
    [
        EVENT.pack(0, 0, 0, 0, 0),
        EVENT.pack(4, 0, 0, 0, 0),
        EVENT.pack(255, 255, 0, 0, 0),
        EVENT.pack(EventKind.READ, 0, 0, 2**32 - 1, 0),
        EVENT.pack(EventKind.READ, 0, 0, MAX_INLINE + 1, 0) + bytes(MAX_INLINE + 1),
        EVENT.pack(EventKind.WRITE, EventFlags.STORED, 0, MAX_CONTENT + 1, 0) + bytes(STORED.size),
        EVENT.pack(EventKind.WRITE, EventFlags.STORED, 0, 1, 0) + bytes(STORED.size - 1),
    ],
)
def test_an_event_that_cannot_be_is_refused(payload: bytes) -> None:
    refused(lambda: list(unpack_events(payload)))


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x01\0\0", bytes(4), b"\x06\0\0\0", b"\xff\0\0\0data"])
def test_a_record_of_no_known_kind_is_refused(payload: bytes) -> None:
    refused(lambda: unpack(payload))


def all_of(payload: bytes) -> list[Event]:
    return list(unpack_events(payload))


@given(st.booleans(), st.lists(area_changes))
def test_changes_of_areas_are_read_in_the_layout_that_is_documented(
    whole: bool, changes: list[AreaChange]
) -> None:
    payload = pack_look(b"".join(map(packed_change, changes)), whole=whole)
    assert payload[:8] == b"\x05\0\0\0" + bytes([whole, 0, 0, 0])
    assert unpack_look(rest_of(payload, RecordKind.AREAS)) == AreaLook(whole, tuple(changes))


@given(st.lists(area_changes, min_size=1, max_size=5), st.data())
def test_changes_of_areas_that_are_cut_off_are_refused(
    changes: list[AreaChange], data: st.DataObject
) -> None:
    payload = bytes(4) + b"".join(map(packed_change, changes))
    last = len(packed_change(changes[-1]))
    refused(lambda: unpack_look(payload[: -data.draw(st.integers(1, last - 1))]))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(3),
        bytes(4) + AREA_CHANGE.pack(0, 0, 2**32 - 1, 0),
        bytes(4) + AREA_CHANGE.pack(0, 0, MAX_INLINE + 1, 0) + bytes(MAX_INLINE + 1),
        bytes(4) + AREA_CHANGE.pack(0, EventFlags.STORED, MAX_CONTENT + 1, 0) + bytes(STORED.size),
        bytes(4) + AREA_CHANGE.pack(0, EventFlags.STORED, 1, 0) + bytes(STORED.size - 1),
    ],
)
def test_a_look_that_cannot_be_is_refused(payload: bytes) -> None:
    refused(lambda: unpack_look(payload))


@pytest.mark.parametrize(
    ("payload", "skipped"),
    [(b"\x06\0\0\0", True), (b"\xff\0\0\0data", True), (b"\x05\0\0\0", False), (b"\x06\0\0", False)],
)
def test_only_whole_records_of_no_known_kind_may_be_skipped(payload: bytes, skipped: bool) -> None:
    assert may_be_skipped(payload) == skipped


readers = st.sampled_from(
    [unpack, SessionInfo.unpack, unpack_content, all_of, unpack_look, Malformed.unpack, may_be_skipped]
)


@given(st.binary(max_size=200), readers)
def test_random_bytes_give_no_other_error(noise: bytes, read: Callable[[bytes], object]) -> None:
    try:
        read(noise)
    except TraceError as error:
        check_text(error)


@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_no_change_of_a_record_gives_any_other_error(all_events: list[Event], data: st.DataObject) -> None:
    payload, read = data.draw(
        st.sampled_from(
            [
                (b"".join(map(packed, all_events)), all_of),
                (content_of(b"what was in memory" * 10), unpack_content),
                (SessionInfo("recorder", "device", memory=True).pack()[4:], SessionInfo.unpack),
            ]
        )
    )
    changed = bytearray(payload)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(payload) - 1), st.integers(0, 255)))):
        changed[at] = value
    try:
        result = read(bytes(changed))
    except TraceError:
        return
    if isinstance(result, Content):
        assert digest(result.data) == result.digest


def test_what_is_read_does_not_keep_the_payload() -> None:
    payload = bytearray(packed(Access(write=False, address=0, length=4, data=b"data")))
    (event,) = unpack_events(payload)
    payload.clear()
    assert isinstance(event, Access)
    assert event.data == b"data"
