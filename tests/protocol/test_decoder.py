"""Framing: however a stream is cut into reads, the same messages come out, with their file descriptors."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import HEADER, HEADER_SIZE, MESSAGE_ROOM, Decoder, Message, ProtocolError, max_message_size
from tests.protocol.layout import header

MAX_SIZE = 4096


@dataclass(frozen=True)
class Sent:
    """A message that somebody sends in one go, with the file descriptors at its first byte."""

    payload: bytes
    fds: tuple[int, ...] = ()

    def encode(self, message_id: int) -> bytes:
        return HEADER.pack(message_id, 9, HEADER_SIZE + len(self.payload), 0, 0) + self.payload


sent = st.builds(Sent, st.binary(max_size=60), st.lists(st.integers(3, 99), max_size=3).map(tuple))
streams = st.lists(sent, min_size=1, max_size=8)


def received(messages: Iterable[Message]) -> list[Sent]:
    return [Sent(bytes(message.payload), message.fds) for message in messages]


def reads(stream: list[Sent], sizes: Iterator[int]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Cut ``stream`` as the kernel does: no read goes past the segment whose file descriptors it brings."""
    segments = [(message.encode(number), message.fds) for number, message in enumerate(stream)]
    while segments:
        room, data = next(sizes), b""
        fds: tuple[int, ...] = ()
        while segments and room and not fds:
            segment, fds = segments.pop(0)
            data += segment[:room]
            if len(segment) > room:
                segments.insert(0, (segment[room:], ()))
            room -= min(room, len(segment))
        yield data, fds


@given(streams, st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_any_way_of_reading_gives_the_same_messages(stream: list[Sent], sizes: list[int]) -> None:
    decoder = Decoder(MAX_SIZE)
    messages: list[Message] = []
    cycle = iter(sizes * 1000)
    for data, fds in reads(stream, cycle):
        decoder.feed(data, fds)
        messages.extend(decoder)
    assert received(messages) == stream
    assert [message.header.message_id for message in messages] == list(range(len(stream)))
    assert decoder.idle
    assert decoder.take_fds() == []


@given(streams)
def test_byte_by_byte_gives_the_same_messages(stream: list[Sent]) -> None:
    decoder = Decoder(MAX_SIZE)
    for data, fds in reads(stream, iter([1] * 1000)):
        decoder.feed(data, fds)
    assert received(decoder) == stream


def test_messages_without_fds_may_stand_in_front() -> None:
    first, second = Sent(b"first"), Sent(b"second", (7,))
    decoder = Decoder(MAX_SIZE)
    decoder.feed(first.encode(0) + second.encode(1), [7])
    assert received(decoder) == [first, second]


def test_fds_in_the_read_that_ends_one_message_and_begins_another_belong_to_the_other() -> None:
    first, second = Sent(b"first" * 5), Sent(b"second" * 5, (7, 8))
    stream = first.encode(0) + second.encode(1)
    decoder = Decoder(MAX_SIZE)
    decoder.feed(stream[:20])
    decoder.feed(stream[20:50], [7, 8])
    decoder.feed(stream[50:])
    assert received(decoder) == [first, second]


def test_fds_with_half_a_header_belong_to_the_message_of_that_header() -> None:
    first, second = Sent(b"first"), Sent(b"second", (7,))
    stream = first.encode(0) + second.encode(1)
    half = len(first.encode(0)) + 3
    decoder = Decoder(MAX_SIZE)
    decoder.feed(stream[:half], [7])
    decoder.feed(stream[half:])
    assert received(decoder) == [first, second]


def test_fds_of_a_read_in_which_nothing_begins_belong_to_the_message_in_progress() -> None:
    whole = Sent(b"payload").encode(0)
    decoder = Decoder(MAX_SIZE)
    decoder.feed(whole[:HEADER_SIZE])
    decoder.feed(whole[HEADER_SIZE:20], [7])
    decoder.feed(whole[20:], [8])
    assert received(decoder) == [Sent(b"payload", (7, 8))]


def test_a_message_is_idle_only_when_nothing_is_held() -> None:
    whole = Sent(b"payload").encode(0)
    decoder = Decoder(MAX_SIZE)
    assert decoder.idle
    decoder.feed(whole[:5])
    assert not decoder.idle
    assert decoder.in_message
    decoder.feed(whole[5:])
    assert not decoder.idle
    assert not decoder.in_message
    list(decoder)
    assert decoder.idle


@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_size_below_the_header_ends_the_stream(size: int) -> None:
    decoder = Decoder(MAX_SIZE)
    decoder.feed(header(1, 9, size))
    with pytest.raises(ProtocolError) as caught:
        decoder.next_message()
    assert caught.value.errno == errno.EINVAL


def test_a_size_over_the_limit_ends_the_stream_before_its_data_arrives() -> None:
    decoder = Decoder(MAX_SIZE)
    decoder.feed(header(1, 9, MAX_SIZE + 1))
    with pytest.raises(ProtocolError) as caught:
        decoder.next_message()
    assert caught.value.errno == errno.E2BIG


def test_a_size_over_the_limit_is_seen_when_the_header_comes_in_two_reads() -> None:
    head = header(1, 9, MAX_SIZE + 1)
    decoder = Decoder(MAX_SIZE)
    decoder.feed(head[:7])
    assert decoder.next_message() is None
    decoder.feed(head[7:])
    with pytest.raises(ProtocolError):
        decoder.next_message()


def test_the_largest_message_is_let_through() -> None:
    largest = Sent(bytes(MAX_SIZE - HEADER_SIZE))
    decoder = Decoder(MAX_SIZE)
    decoder.feed(largest.encode(0))
    assert received(decoder) == [largest]


def test_messages_before_a_broken_one_still_come_out() -> None:
    good = Sent(b"good")
    decoder = Decoder(MAX_SIZE)
    decoder.feed(good.encode(0) + header(1, 9, 3))
    message = decoder.next_message()
    assert message is not None
    assert received([message]) == [good]
    with pytest.raises(ProtocolError):
        decoder.next_message()


def test_a_broken_stream_stays_broken() -> None:
    decoder = Decoder(MAX_SIZE)
    decoder.feed(header(1, 9, 3), [7])
    decoder.feed(Sent(b"good").encode(0), [8])
    for _ in range(2):
        with pytest.raises(ProtocolError):
            decoder.next_message()
    assert decoder.take_fds() == [7, 8]
    assert not decoder.idle


@pytest.mark.parametrize("cut", [5, 16, 20, 23])
def test_too_many_fds_end_the_stream_and_stay_with_the_decoder(cut: int) -> None:
    whole = Sent(b"payload").encode(0)
    decoder = Decoder(MAX_SIZE, max_fds=3)
    decoder.feed(whole[:cut], [4, 5, 6, 7])
    decoder.feed(whole[cut:])
    with pytest.raises(ProtocolError) as caught:
        decoder.next_message()
    assert caught.value.errno == errno.EINVAL
    assert decoder.take_fds() == [4, 5, 6, 7]


def test_fds_that_come_in_several_reads_of_one_message_are_counted_together() -> None:
    whole = Sent(b"payload").encode(0)
    decoder = Decoder(MAX_SIZE, max_fds=3)
    decoder.feed(whole[:18], [4, 5])
    decoder.feed(whole[18:20], [6, 7])
    with pytest.raises(ProtocolError):
        decoder.next_message()
    assert decoder.take_fds() == [4, 5, 6, 7]


def test_fds_without_any_bytes_end_the_stream() -> None:
    decoder = Decoder(MAX_SIZE)
    decoder.feed(b"", [7])
    with pytest.raises(ProtocolError):
        decoder.next_message()
    assert decoder.take_fds() == [7]


def test_what_was_not_taken_out_gives_its_fds_back() -> None:
    decoder = Decoder(MAX_SIZE)
    decoder.feed(Sent(b"one").encode(0), [4])
    decoder.feed(Sent(b"two").encode(1), [5])
    message = decoder.next_message()
    assert message is not None
    assert message.fds == (4,)
    decoder.feed(Sent(b"three").encode(2)[:6], [6])
    assert decoder.take_fds() == [5, 6]
    assert decoder.take_fds() == []


def test_a_whole_message_is_a_view_of_what_was_fed() -> None:
    memory = bytearray(Sent(b"payload").encode(0))
    decoder = Decoder(MAX_SIZE)
    decoder.feed(memory)
    message = decoder.next_message()
    assert message is not None
    memory[HEADER_SIZE : HEADER_SIZE + 7] = b"changed"
    assert bytes(message.payload) == b"changed"


def test_a_message_in_pieces_does_not_depend_on_the_memory_it_was_fed_from() -> None:
    whole = Sent(b"payload").encode(0)
    memory = bytearray(12)
    decoder = Decoder(MAX_SIZE)
    for start in range(0, len(whole), 12):
        piece = whole[start : start + 12]
        memory[: len(piece)] = piece
        decoder.feed(memoryview(memory)[: len(piece)])
    assert received(decoder) == [Sent(b"payload")]


def test_no_memory_is_set_aside_for_a_size_that_was_only_announced() -> None:
    decoder = Decoder(1 << 40)
    tracemalloc.start()
    try:
        decoder.feed(header(1, 9, 0xFFFFFFFF))
        decoder.feed(bytes(1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.in_message
    assert peak < 100_000


def test_the_limit_leaves_room_beside_the_data() -> None:
    assert max_message_size(1 << 20) == (1 << 20) + MESSAGE_ROOM


def test_how_much_is_missing_leads_from_header_to_header() -> None:
    decoder = Decoder(max_size=1 << 16)
    data = Sent(bytes(100)).encode(1)
    position = 0
    steps = []
    while position < len(data):
        steps.append(decoder.missing)
        decoder.feed(data[position : position + decoder.missing])
        position += steps[-1]
    assert steps == [HEADER_SIZE, 100]
    assert decoder.missing == HEADER_SIZE
    decoder.feed(data[:5])
    assert decoder.missing == HEADER_SIZE - 5
    decoder.feed(data[5:50])
    assert decoder.missing == len(data) - 50


@given(streams, st.sampled_from([0, 15, MAX_SIZE + 1, 2**32 - 1]), st.lists(st.integers(1, 100), min_size=1))
def test_what_has_come_of_the_message_that_ends_the_stream_is_kept(
    stream: list[Sent], size: int, sizes: list[int]
) -> None:
    broken = HEADER.pack(7, 9, size, 0, 0) + b"what follows"
    data = b"".join(message.encode(number) for number, message in enumerate(stream)) + broken
    decoder = Decoder(MAX_SIZE)
    cycle, at = iter(sizes * 1000), 0
    while decoder.refused is None:
        read = next(cycle)
        decoder.feed(data[at : at + read])
        at += read
    # The header, and what came in one read with its end.
    assert decoder.rest == broken[: len(broken) - max(len(data) - at, 0)]
    assert len(decoder.rest) >= HEADER_SIZE


def test_a_message_with_too_many_file_descriptors_is_kept() -> None:
    message = Sent(b"data").encode(1)
    decoder = Decoder(MAX_SIZE, max_fds=2)
    decoder.feed(message, [3, 4, 5])
    with pytest.raises(ProtocolError):
        decoder.next_message()
    assert decoder.rest == message


def test_what_has_come_of_a_message_in_progress_is_kept() -> None:
    message = Sent(b"data").encode(1)
    decoder = Decoder(MAX_SIZE)
    decoder.feed(message + message[:-1])
    assert decoder.rest == message[:-1]
    decoder.feed(message[-1:])
    assert decoder.rest == b""
