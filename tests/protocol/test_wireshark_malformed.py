"""What cannot be read is malformed in the dissector for Wireshark, and never an error of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from struct import pack_into

from protocol import (
    HEADER,
    HEADER_SIZE,
    Capabilities,
    Command,
    DeviceFeature,
    Feature,
    FeatureFlags,
    Header,
    MessageType,
    ProtocolError,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionWrite,
    RegionWriteMulti,
    SparseArea,
    SparseMmap,
    Version,
    decode_reply,
    decode_request,
    encode,
    encode_request,
    pcapng,
    trace,
)
from protocol.trace import EVENT, TraceError
from tests.protocol.tshark import ERROR, Capture, Row, capture_of, record_capture, rows, tshark
from tests.protocol.wireshark_examples import examples
from tests.protocol.wireshark_fields import feature_data

LUA_ERROR = "Lua Error"


def refused(message: bytes) -> bool:
    """Whether our decoder refuses a message."""
    try:
        header = Header.unpack(message)
        payload = message[HEADER_SIZE:]
        if header.size != len(message):
            return True
        value = decode_reply(header, payload) if header.is_reply else decode_request(header, payload)
        if isinstance(value, DeviceFeature):
            feature_data(value, reply=header.is_reply)
    except ProtocolError:
        return True
    return False


def malformed(row: Row) -> bool:
    remarked = bool(row["vfio_user.malformed"])
    assert remarked == (ERROR in row["_ws.expert.severity"]), row["_ws.expert.message"]
    return remarked


def check_harmless(row: Row) -> None:
    assert LUA_ERROR not in str(row["_ws.expert.message"]) + str(row["_ws.col.Info"])


@cache
def some() -> list[bytes]:
    """A few examples of each kind, of all sizes."""
    return [example.message for example in examples()][::13]


def sized(message: bytes) -> bytes:
    """The message with its own size in its header."""
    changed = bytearray(message)
    pack_into("=I", changed, 4, len(message))
    return bytes(changed)


def test_a_message_that_was_cut_off_is_malformed(tmp_path: Path) -> None:
    random = Random(2)  # noqa: S311
    cut = [message[: random.randrange(len(message))] for message in some()]
    for row in rows(capture_of(cut, tmp_path / "file.pcapng")):
        check_harmless(row)
        assert row["vfio_user.malformed"]


def test_a_message_with_too_little_is_malformed_where_the_decoder_refuses_it(tmp_path: Path) -> None:
    random = Random(3)  # noqa: S311
    cut = [sized(message[: random.randrange(HEADER_SIZE, len(message) + 1)]) for message in some() * 3]
    shown = rows(capture_of(cut, tmp_path / "file.pcapng"))
    assert 200 < sum(map(refused, cut)) < len(cut)
    for message, row in zip(cut, shown, strict=True):
        check_harmless(row)
        remarked = malformed(row) or bool(row["vfio_user.short_count"])
        assert remarked == refused(message), (message.hex(), row["_ws.expert.message"])


def test_a_message_with_too_much_is_malformed_only_where_the_decoder_refuses_it(tmp_path: Path) -> None:
    # What is JSON, Wireshark's own dissector of it says.
    most = [message for message in some() if Header.unpack(message).command != Command.VERSION]
    longer = [sized(message + bytes(number % 9)) for number, message in enumerate(most)]
    shown = rows(capture_of(longer, tmp_path / "file.pcapng"))
    assert 100 < sum(map(refused, longer)) < len(longer)
    for message, row in zip(longer, shown, strict=True):
        check_harmless(row)
        remarked = malformed(row) or bool(row["vfio_user.short_count"])
        assert remarked == refused(message), (message.hex(), row["_ws.expert.message"])


def hostile(random: Random, number: int) -> Iterator[bytes]:
    """Random bytes, random payloads, and valid messages with a few bytes changed."""
    valid = some()
    for _ in range(number):
        yield random.randbytes(random.randrange(100))
        command, flags = random.randrange(20), random.choice([0, 0, 1, 1, 0x10, 0x21, 2])
        payload = bytes(
            random.choices([0, 1, 2, 4, 16, 40, 255], [60, 9, 9, 9, 4, 5, 4], k=random.randrange(150))
        )
        yield HEADER.pack(1, command, HEADER_SIZE + len(payload), flags, 0) + payload
        changed = bytearray(random.choice(valid))
        for _ in range(random.randrange(1, 4)):
            changed[random.randrange(len(changed))] = random.choice([0, 1, 8, 255, random.randrange(256)])
        yield bytes(changed)


def test_hostile_messages_do_no_harm_and_are_malformed_only_where_the_decoder_refuses(tmp_path: Path) -> None:
    messages = list(hostile(Random(4), 1000))  # noqa: S311
    file = capture_of(messages, tmp_path / "file.pcapng")
    shown = rows(file, "-2")
    assert sum(map(refused, messages)) < len(messages)
    for message, row in zip(messages, shown, strict=True):
        check_harmless(row)
        # The other way round, flags and values that make no sense are shown as they are.
        assert not malformed(row) or refused(message), (message.hex(), row["_ws.expert.message"])
    assert LUA_ERROR not in tshark(file, "-V", "-x")


UNCHECKED = (trace.RecordKind.CONTENT, trace.RecordKind.MALFORMED)
"""Contents are not read, and what is no message is malformed in any case."""


def readable(record: bytes) -> bool:
    try:
        kind, rest = trace.unpack(record)
        if kind is trace.RecordKind.EVENTS:
            list(trace.unpack_events(rest))
        if kind is trace.RecordKind.AREAS:
            trace.unpack_look(rest)
    except TraceError:
        return False
    return True


def test_hostile_records_do_no_harm(tmp_path: Path) -> None:
    random = Random(5)  # noqa: S311
    events = b"".join(EVENT.pack(kind % 3 + 1, 0, 0, 0, kind) for kind in range(6))
    records = [random.randbytes(random.randrange(100)) for _ in range(300)]
    records += [
        bytes([random.randrange(7), 0, 0, 0]) + random.randbytes(random.randrange(100)) for _ in range(300)
    ]
    for _ in range(600):
        changed = bytearray(trace.pack_events(events))
        changed[random.randrange(4, len(changed))] = random.choice([0, 1, 2, 3, 4, 255])
        records.append(bytes(changed[: random.randrange(80, 2 * len(changed))]))
    file = record_capture(records, tmp_path / "file.pcapng")
    for record, row in zip(records, rows(file, "-2"), strict=True):
        check_harmless(row)
        assert not row["vgpud.malformed"] or not readable(record) or record[0] in UNCHECKED
    assert LUA_ERROR not in tshark(file, "-V", "-x")


READ = encode_request(0, RegionRead(0, 4, 4))
MALFORMED = {
    "there is no command 99": encode(0, 99, 0),
    "there is no command 14": encode(0, 14, MessageType.REPLY),
    "there is no command 0": encode(0, 0, MessageType.REPLY),
    "neither a command nor a reply": encode(0, Command.REGION_READ, 2, READ[HEADER_SIZE:]),
    "a message of 31 bytes in a packet of 32": HEADER.pack(0, 9, 31, 0, 0) + READ[HEADER_SIZE:],
    "a message of 0 bytes in a packet of 16": HEADER.pack(0, 13, 0, 0, 0),
    "argsz 15 is less than 16": encode(0, Command.DEVICE_GET_INFO, 0, b"\x0f" + bytes(15)),
    "1 bytes too many": encode(0, Command.DEVICE_RESET, 0, b"x"),
    "3 bytes of data where 4 are said to be": encode(0, 10, 0, RegionWrite(0, 0, b"abcd").pack()[:-1]),
    "18446744073709551615 writes in 0 bytes": encode(0, Command.REGION_WRITE_MULTI, 0, b"\xff" * 8),
    "a write of 9 bytes": encode(0, 15, 0, b"\1" + bytes(19) + b"\x09" + bytes(11)),
    "version data without NUL": encode(0, Command.VERSION, 0, bytes(4) + b"{}"),
}


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    shown = rows(capture_of(MALFORMED.values(), tmp_path / "file.pcapng"))
    for (problem, message), row in zip(MALFORMED.items(), shown, strict=True):
        assert refused(message)
        assert malformed(row), problem
        assert problem in row["_ws.expert.message"]
        assert f"malformed: {problem}" in str(row["_ws.col.Info"])


def test_a_packet_that_was_captured_in_part_is_malformed(tmp_path: Path) -> None:
    capture = Capture()
    block = bytearray(pcapng.packet(0, capture.time, encode_request(0, RegionWrite(0, 4, b"abcd"))[:30]))
    pack_into("<I", block, 24, 36)
    capture.block(bytes(block))
    [row] = rows(capture.write(tmp_path / "file.pcapng"))
    assert malformed(row)
    assert "the file has 30 bytes of 36" in row["_ws.expert.message"]
    assert row["vfio_user.region.index"] == [4]


def chained(following: int) -> bytes:
    """A reply with a capability that says where the next one is."""
    payload = bytearray(
        RegionInfo(4, RegionFlags.READ, 4096, 0, (SparseMmap((SparseArea(0, 4096),)),)).pack()
    )
    pack_into("=I", payload, 36, following)
    return encode(0, Command.DEVICE_GET_REGION_INFO, MessageType.REPLY, bytes(payload))


def test_a_chain_of_capabilities_cannot_be_a_ring(tmp_path: Path) -> None:
    messages = [chained(following) for following in (0, 32, 40, 36, 8, 2**32 - 8)]
    for message, row in zip(messages, rows(capture_of(messages, tmp_path / "file.pcapng")), strict=True):
        check_harmless(row)
        assert malformed(row) == refused(message)
        assert len(row["vfio_user.region.cap.id"]) <= 2


def with_json(data: bytes) -> bytes:
    return encode(0, Command.VERSION, MessageType.COMMAND, b"\0\0\1\0" + data + b"\0")


def test_json_of_any_depth_does_no_harm(tmp_path: Path) -> None:
    messages = [with_json(b"[" * depth + b"]" * depth) for depth in (8, 31, 33, 1000, 30000, 130000)]
    for row in rows(capture_of(messages, tmp_path / "file.pcapng"), "-2"):
        check_harmless(row)
        assert row["vfio_user.version.json"]
        assert row["_ws.malformed"] == []


BAD_JSON = [b"{", b"nonsense", b"\xff\xfe", b'{"a":1}}', b'"\\ud800"', b"\0", b'{"a":\0}', b"\x1b[2J"]


def test_what_is_no_json_does_no_harm(tmp_path: Path) -> None:
    file = capture_of(map(with_json, BAD_JSON), tmp_path / "file.pcapng")
    assert LUA_ERROR not in tshark(file, "-V")
    for row in rows(file):
        check_harmless(row)
        assert row["_ws.col.Info"] == ["VERSION 0.1"]


def test_the_dissector_of_json_leaves_the_columns_alone(tmp_path: Path) -> None:
    message = encode_request(0, Version(0, 1, Capabilities(max_msg_fds=8)))
    [row] = rows(capture_of([message], tmp_path / "file.pcapng"))
    assert row["_ws.col.Info"] == ["VERSION 0.1"]
    assert row["_ws.col.Protocol"] == ["VFIO-USER"]


LONG = {  # As long as Wireshark lets a packet be: 256 KiB.
    "writes": encode_request(0, RegionWriteMulti((RegionWrite(0, 4, b"abcd"),) * 10900)),
    "areas": encode(
        0,
        Command.DEVICE_GET_REGION_INFO,
        MessageType.REPLY,
        RegionInfo(4, RegionFlags.READ, 4096, 0, (SparseMmap((SparseArea(0, 4096),) * 16000),)).pack(),
    ),
    "write": encode_request(0, RegionWrite(0, 4, bytes(260000))),
    "feature": encode_request(0, DeviceFeature(Feature.MIGRATION, FeatureFlags.PROBE, bytes(260000))),
}


def test_a_message_of_any_length_is_shown(tmp_path: Path) -> None:
    file = capture_of(LONG.values(), tmp_path / "file.pcapng")
    for message, row in zip(LONG.values(), rows(file), strict=True):
        assert not refused(message)
        assert not malformed(row)
        assert row["_ws.malformed"] == []
        assert row["vfio_user.size"] == [len(message)]
    assert LUA_ERROR not in tshark(file, "-V")


def test_a_record_of_many_events_is_shown(tmp_path: Path) -> None:
    record = trace.pack_events(EVENT.pack(3, 0, 0, 0, 1) * 16000)
    file = record_capture([record], tmp_path / "file.pcapng")
    assert LUA_ERROR not in tshark(file, "-V")
    assert "INTX 1, and 9992 more" in tshark(file)
