"""Reading traces: whole, cut anywhere, edited by other tools, made up, or damaged; in memory that does not grow."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import Command, encode
from protocol.header import MessageType
from protocol.pcapng import (
    LINKTYPE_USER0,
    LINKTYPE_USER1,
    Direction,
    Packet,
    Parser,
    interface,
    packet,
    section,
)
from protocol.trace import (
    EVENT,
    MAX_CONTENT,
    STORED,
    Access,
    EventFlags,
    EventKind,
    SessionInfo,
    TraceError,
    digest,
    pack_content,
    pack_events,
)
from server.trace.reader import Traced, TracedEvents, TracedMessage, TracedSession, TraceReader
from server.trace.trace_files import PIECE
from tests.protocol.test_pcapng import BIG
from tests.protocol.test_pcapng_tools import run
from tests.server.trace.test_recorder import (
    IN,
    INFO,
    OUT,
    PAGE,
    Pins,
    Seen,
    contents_of,
    every_kind,
    joined,
    message_of,
    recording,
    seen_in,
)

START = section("tests") + interface(LINKTYPE_USER0, "vfio-user") + interface(LINKTYPE_USER1, "records")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small trace with everything in it."""
    path = tmp_path_factory.mktemp("recorded") / "trace"
    with recording(path) as (recorder, _):
        for number in range(3):
            every_kind(recorder, number, Pins(), bytearray(bytes([number]) * 700))
    return path.read_bytes()


def read_all(path: Path) -> list[Traced]:
    with TraceReader(path) as reader:
        return list(reader)


def refusal(path: Path) -> tuple[list[Traced], str]:
    """What comes before the damage, and what is said of it: one line that names the file."""
    found: list[Traced] = []
    with TraceReader(path) as reader, pytest.raises(TraceError) as caught:
        found.extend(reader)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return found, text


def messages_of(path: Path) -> list[TracedMessage]:
    return [one for one in read_all(path) if isinstance(one, TracedMessage)]


def ends_of(data: bytes) -> list[int]:
    """Where the blocks of a file of ours end."""
    parser = Parser()
    parser.feed(data)
    return [*(block.offset for block in itertools.islice(parser.blocks(), 1, None)), len(data)]


def test_a_trace_is_read_once_and_again_and_its_messages_are_counted(file: Path, recorded: bytes) -> None:
    file.write_bytes(recorded * 2)
    with TraceReader(file) as reader:
        first, second = list(reader), list(reader)
    assert first == second
    assert [one.number for one in first if isinstance(one, TracedMessage)] == [1, 2, 3, 4, 5, 6]
    sessions = [one.info for one in first if isinstance(one, TracedSession)]
    assert [replace(info, recording="", file=0) for info in sessions] == [INFO, INFO]


def test_a_trace_that_is_cut_anywhere_is_read_up_to_its_last_whole_block(file: Path, recorded: bytes) -> None:
    file.write_bytes(recorded)
    ends = ends_of(recorded)
    whole = read_all(file)
    lengths = []
    for cut in range(len(recorded), -1, -1):
        os.truncate(file, cut)
        with TraceReader(file) as reader:
            found = list(reader)
            assert found == whole[: len(found)]
            assert reader.cut_short == cut - max([0, *(end for end in ends if end <= cut)])
            if cut in ends:
                assert accesses_of(found, reader) is not None
        lengths.append(len(found))
    assert lengths == sorted(lengths, reverse=True)
    assert set(lengths) == set(range(len(whole) + 1))


def accesses_of(found: Iterable[Traced], reader: TraceReader) -> list[bytes]:
    return [
        reader.data(event)
        for one in found
        if isinstance(one, TracedEvents)
        for event in one.events
        if isinstance(event, Access)
    ]


@pytest.mark.parametrize("arguments", [("-a", "1:a comment that moves all that follows"), ("-F", "pcapng")])
def test_the_contents_of_a_trace_that_was_edited_are_found(
    file: Path, tmp_path: Path, recorded: bytes, arguments: tuple[str, ...]
) -> None:
    file.write_bytes(recorded)
    edited = tmp_path / "edited"
    run("editcap", *arguments, file, edited)
    assert seen_in(edited) == seen_in(file)
    assert contents_of(edited) == 6


def test_the_contents_of_a_trace_of_which_packets_were_removed_are_found(
    file: Path, tmp_path: Path, recorded: bytes
) -> None:
    file.write_bytes(recorded)
    number = 1 + sum(isinstance(block, Packet) for block in blocks_before(recorded, IN))
    edited = tmp_path / "edited"
    run("editcap", file, edited, str(number))
    first = next(one for one in seen_in(file) if one[0] == "message")
    assert seen_in(edited) == joined([one for one in seen_in(file) if one != first])


def blocks_before(data: bytes, direction: Direction) -> list[object]:
    parser = Parser()
    parser.feed(data)
    return list(
        itertools.takewhile(
            lambda block: not (isinstance(block, Packet) and block.direction == direction), parser.blocks()
        )
    )


def test_a_content_that_was_removed_is_missed(file: Path, tmp_path: Path) -> None:
    with recording(file) as (recorder, _):
        recorder.read(0x1000, os.urandom(PAGE))
        recorder.message(IN, message_of(1))
    edited = tmp_path / "edited"
    run("editcap", file, edited, "2")
    with (
        TraceReader(edited) as reader,
        pytest.raises(TraceError, match=r"0x1000\+0x1000 is not in this file"),
    ):
        accesses_of(list(reader), reader)


def test_a_trace_in_the_other_byte_order_is_read(file: Path) -> None:
    content = b"content" * 100
    event = EVENT.pack(EventKind.READ, EventFlags.STORED, 0, len(content), 0x5000)
    event += STORED.pack(digest(content), 3)
    data = BIG.section() + BIG.interface(BIG.option(9, b"\x09")) + BIG.interface(b"", LINKTYPE_USER1)
    data += BIG.packet(0, INFO.pack(), interface=1)
    data += BIG.packet(12345, message_of(1), BIG.option(2, pack(">I", 2)) + BIG.option(1, b'{"twin":true}'))
    data += BIG.packet(7, pack_content(digest(content), content), interface=1)
    data += BIG.packet(8, pack_events(event), interface=1)
    file.write_bytes(data)
    kinds: list[Seen] = seen_in(file)
    assert kinds[0] == ("session", INFO)
    assert kinds[2] == ("read", 0x5000, content)
    (message,) = messages_of(file)
    assert (message.time, message.direction, message.facts.twin) == (12345, OUT, True)


def test_interfaces_of_other_kinds_are_skipped(file: Path) -> None:
    other = interface(1, "ethernet")
    data = section("") + other + interface(LINKTYPE_USER1, "") + interface(LINKTYPE_USER0, "")
    data += packet(0, 0, b"a frame") + packet(1, 0, INFO.pack()) + packet(2, 0, message_of(1))
    again = (
        section("") + interface(LINKTYPE_USER0, "") + other + packet(0, 0, message_of(2)) + packet(1, 0, b"")
    )
    file.write_bytes(data + again)
    assert [type(one) for one in read_all(file)] == [TracedSession, TracedMessage, TracedMessage]


@pytest.mark.parametrize(
    ("command", "kind", "inbound"),
    [
        (Command.REGION_READ, MessageType.COMMAND, True),
        (Command.REGION_READ, MessageType.REPLY, False),
        (Command.DMA_READ, MessageType.COMMAND, False),
        (Command.DMA_READ, MessageType.REPLY, True),
        (Command.DMA_WRITE, MessageType.COMMAND, False),
        (Command.DMA_WRITE, MessageType.REPLY, True),
        (Command.VERSION, MessageType.COMMAND, True),
    ],
)
def test_who_sent_a_message_is_told_by_its_command_where_the_file_does_not_say(
    file: Path, command: Command, kind: MessageType, inbound: bool
) -> None:
    message = encode(1, command, kind, b"")
    file.write_bytes(START + packet(0, 0, message) + packet(0, 0, message, OUT if inbound else IN))
    assert [one.inbound for one in messages_of(file)] == [inbound, not inbound]


def test_a_comment_of_somebody_elses_says_nothing_of_fds(file: Path) -> None:
    file.write_bytes(START + packet(0, 0, message_of(1), IN, "look at this!"))
    (message,) = messages_of(file)
    assert (message.facts.fds, message.facts.twin) == ((), False)


def event_of(content: bytes, place: int, *, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    head = EVENT.pack(EventKind.WRITE, EventFlags.STORED, 0, size, 0x1000)
    return packet(1, 0, pack_events(head + STORED.pack(digest(content), place)))


@pytest.mark.parametrize("place", [0, 1, 40, len(START), len(START) + 4, 10**6, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_content_is_found_wherever_its_place_is_said_to_be(file: Path, place: int) -> None:
    content = os.urandom(MAX_CONTENT)
    stored = packet(1, 0, pack_content(digest(content), content))
    file.write_bytes(START + packet(0, 0, message_of(1)) + stored + event_of(content, place))
    assert seen_in(file)[-1] == ("write", 0x1000, content)


def test_a_content_of_another_length_is_not_the_one(file: Path) -> None:
    stored = packet(1, 0, pack_content(digest(b"content"), b"content"))
    file.write_bytes(START + stored + event_of(b"content", len(START), length=6))
    with TraceReader(file) as reader, pytest.raises(TraceError):
        accesses_of(list(reader), reader)


@pytest.mark.parametrize(
    "block",
    [
        packet(0, 0, b""),
        packet(0, 0, bytes(15)),
        packet(1, 0, b""),
        packet(1, 0, b"\x09\0\0\0"),
        packet(1, 0, SessionInfo("").pack() + b"x"),
        packet(1, 0, pack_events(b"\x01")),
        packet(1, 0, pack_events(EVENT.pack(EventKind.READ, 0, 0, 2**32 - 1, 0))),
        packet(7, 0, message_of(1)),
        b"\x06\0\0\0\0\0\0\0",
    ],
)
def test_what_cannot_be_is_an_error_that_says_where_behind_what_comes_before(
    file: Path, recorded: bytes, block: bytes
) -> None:
    file.write_bytes(recorded)
    before = read_all(file)
    file.write_bytes(recorded + block)
    found, text = refusal(file)
    assert found == before
    assert f"damaged at byte {len(recorded)}: " in text


def test_packets_that_were_shortened_are_an_error(file: Path, tmp_path: Path, recorded: bytes) -> None:
    file.write_bytes(recorded)
    run("editcap", "-s", "100", file, tmp_path / "shortened")
    assert "not whole" in refusal(tmp_path / "shortened")[1]
    file.write_bytes(START + packet(0, 0, message_of(1)) + packet(0, 0, message_of(2, 100)))
    run("editcap", "-s", "100", file, tmp_path / "shortened")
    found, text = refusal(tmp_path / "shortened")
    assert (len(found), "message 2 " in text) == (1, True)


@pytest.mark.parametrize("data", [b"#!/bin/sh\nexit 0\n", b"\xd4\xc3\xb2\xa1" + bytes(20), bytes(100)])
def test_what_is_no_trace_is_an_error(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert refusal(file)[0] == []


def test_an_empty_file_has_nothing_and_one_that_is_missing_is_an_error(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TraceReader(file)
    file.write_bytes(b"")
    assert read_all(file) == []


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=4,
)


@given(edits)
@example([("delete", 0.5, 1)])
def test_no_damage_gives_any_other_error(
    tmp_path_factory: pytest.TempPathFactory, recorded: bytes, edited: list[tuple[str, float, int]]
) -> None:
    data = bytearray(recorded)
    for kind, where, value in edited:
        at = int(where * len(data))
        if kind == "flip":
            data[at] ^= value
        elif kind == "insert":
            data[at:at] = bytes([value])
        elif kind == "delete":
            del data[at : at + value]
        elif where > 0.5:
            del data[at:]
    file = tmp_path_factory.mktemp("damaged") / "trace"
    file.write_bytes(data)
    check_that_it_is_read_or_refused(file)
    file.unlink()


def check_that_it_is_read_or_refused(file: Path) -> None:
    with TraceReader(file) as reader:
        found: list[Traced] = []
        try:
            found.extend(reader)
        except TraceError as error:
            assert str(error).startswith(f"{file}: ")  # noqa: PT017 - it may be read as well
        for one in found:
            try:
                accesses_of([one], reader)
            except TraceError:
                continue


payloads = st.binary(max_size=60) | st.builds(
    lambda kind, rest: bytes([kind, 0, 0, 0]) + rest, st.integers(0, 4), st.binary(max_size=60)
)


@given(st.lists(st.tuples(st.integers(0, 1), payloads, st.text(max_size=9).map("{".__add__)), max_size=8))
def test_no_record_that_is_made_up_gives_any_other_error(
    tmp_path_factory: pytest.TempPathFactory, packets: list[tuple[int, bytes, str]]
) -> None:
    file = tmp_path_factory.mktemp("made up") / "trace"
    file.write_bytes(
        START + b"".join(packet(number, 0, data, IN, comment) for number, data, comment in packets)
    )
    check_that_it_is_read_or_refused(file)
    file.unlink()


def test_memory_does_not_grow_with_the_length_of_the_trace(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / str(count)
        page = os.urandom(PAGE)
        with recording(path) as (recorder, _):
            for number in range(count):
                recorder.message(IN, message_of(number, 20))
                if number % 100 == 0:
                    recorder.interrupt(2, number)
                    recorder.read(number, number.to_bytes(4, "little") + page)
        tracemalloc.start()
        try:
            with TraceReader(path) as reader:
                for one in reader:
                    accesses_of([one], reader)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100_000) < peak(10_000) + PIECE
