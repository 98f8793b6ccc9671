"""pcapng files: what is written and read, against the draft, and with every kind of damage."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import pcapng
from protocol.pcapng import (
    LINKTYPE_USER0,
    LINKTYPE_USER1,
    MAX_BLOCK,
    MAX_INTERFACES,
    Block,
    Direction,
    Interface,
    Packet,
    Parser,
    PcapngError,
    Section,
)

TIME = 1_700_000_000_123_456_789


@dataclass(frozen=True)
class Hand:
    """Blocks made by hand from the draft, in either byte order ("<" or ">")."""

    order: str

    def block(self, kind: int, body: bytes) -> bytes:
        """Section 3.1."""
        body += bytes(-len(body) % 4)
        length = pack(self.order + "I", 12 + len(body))
        return pack(self.order + "I", kind) + length + body + length

    def option(self, code: int, value: bytes = b"") -> bytes:
        """Section 3.5."""
        return pack(self.order + "HH", code, len(value)) + value + bytes(-len(value) % 4)

    def section(self, options: bytes = b"", *, major: int = 1, length: int = -1) -> bytes:
        """Section 4.1."""
        fields = pack(self.order + "IHHq", 0x1A2B3C4D, major, 0, length)
        return self.block(0x0A0D0D0A, fields + options)

    def interface(self, options: bytes = b"", link_type: int = LINKTYPE_USER0) -> bytes:
        """Section 4.2."""
        return self.block(1, pack(self.order + "HHI", link_type, 0, 0) + options)

    def packet(
        self, ticks: int, data: bytes, options: bytes = b"", *, interface: int = 0, length: int | None = None
    ) -> bytes:
        """Section 4.3."""
        sizes = (len(data), len(data) if length is None else length)
        fields = pack(self.order + "IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, *sizes)
        return self.block(6, fields + data + bytes(-len(data) % 4) + options)


LITTLE, BIG = Hand("<"), Hand(">")
either_order = pytest.mark.parametrize("hand", [LITTLE, BIG], ids=["little", "big"])

sections = st.builds(Section, st.just(0), st.text(max_size=20))
interfaces = st.builds(Interface, st.just(0), st.integers(0, 2**16 - 1), st.text(max_size=20))
packets = st.builds(
    Packet,
    st.just(0),
    st.integers(0, 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=50),
    st.sampled_from(Direction),
    st.text(max_size=20),
)


@st.composite
def files(draw: st.DrawFn) -> list[Block]:
    """The blocks of a file: sections, each of two interfaces or more, and packets of the first two."""
    blocks: list[Block] = []
    for _ in range(draw(st.integers(1, 3))):
        blocks += [draw(sections), draw(interfaces), draw(interfaces)]
        blocks += draw(st.lists(packets | interfaces, max_size=5))
    return blocks


def written(blocks: Iterable[Block]) -> tuple[bytes, list[Block]]:
    """A file of ``blocks``, and the same blocks where they are in it."""
    data, placed = b"", []
    for block in blocks:
        placed.append(replace(block, offset=len(data)))
        if isinstance(block, Section):
            data += pcapng.section(block.application)
        elif isinstance(block, Interface):
            data += pcapng.interface(block.link_type, block.name)
        else:
            data += pcapng.packet(
                block.interface, block.timestamp, block.data, block.direction, block.comment
            )
    return data, placed


def read(data: bytes, sizes: Iterator[int] | None = None) -> list[Block]:
    """All blocks of a file that comes in pieces of ``sizes``, or whole."""
    return list(Reading(data, sizes))


class Reading:
    """Blocks one by one; :attr:`parser` is what reads them."""

    def __init__(self, data: bytes, sizes: Iterator[int] | None = None) -> None:
        self.parser = Parser()
        self._data = data
        self._sizes = sizes

    def __iter__(self) -> Iterator[Block]:
        at = 0
        while at < len(self._data):
            size = len(self._data) if self._sizes is None else next(self._sizes)
            self.parser.feed(self._data[at : at + size])
            at += size
            yield from self.parser.blocks()


def only_packet(data: bytes) -> Packet:
    (block,) = (block for block in read(data) if isinstance(block, Packet))
    return block


def error_of(data: bytes) -> tuple[list[Block], PcapngError]:
    """The blocks before the damage, and what is said of it."""
    blocks: list[Block] = []
    with pytest.raises(PcapngError) as caught:
        blocks.extend(Reading(data))
    return blocks, caught.value


FILE, BLOCKS = written(
    [
        Section(0, "tests"),
        Interface(0, LINKTYPE_USER0, "messages"),
        Interface(0, LINKTYPE_USER1, "events"),
        Packet(0, 0, TIME, b"a message", Direction.INBOUND, '{"fds":[]}'),
        Packet(0, 1, TIME + 1, b"event", Direction.UNKNOWN, ""),
        Packet(0, 0, TIME + 2, b"", Direction.OUTBOUND, "é\u2028🖥"),
    ]
)
ENDS = [*(block.offset for block in BLOCKS[1:]), len(FILE)]


@given(files(), st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_what_is_written_is_read_however_it_is_cut(blocks: list[Block], sizes: list[int]) -> None:
    data, expected = written(blocks)
    assert read(data) == expected
    assert read(data, cycle(sizes)) == expected


def test_blocks_come_out_while_more_is_fed() -> None:
    parser = Parser()
    parser.feed(FILE[:-1])
    seen = []
    for block in parser.blocks():
        seen.append(block)
        if len(seen) == 1:
            parser.feed(FILE[-1:])
    assert seen == BLOCKS
    assert parser.pending == 0


def test_who_takes_one_block_finds_the_others_later() -> None:
    parser = Parser()
    parser.feed(FILE)
    for block in parser.blocks():
        assert block == BLOCKS[0]
        break
    assert list(parser.blocks()) == BLOCKS[1:]


def test_a_file_cut_anywhere_gives_the_whole_blocks_before() -> None:
    for cut in range(len(FILE) + 1):
        reading = Reading(FILE[:cut])
        whole = [block for block, end in zip(BLOCKS, ENDS, strict=True) if end <= cut]
        assert list(reading) == whole
        assert reading.parser.pending == cut - ([0, *ENDS])[len(whole)]


def test_a_packet_is_read_where_it_stands_in_a_file_of_ours() -> None:
    packet = BLOCKS[4]
    parser = Parser.inside(packet.offset)
    parser.feed(FILE[packet.offset :])
    assert next(iter(parser.blocks())) == packet


@either_order
def test_sections_of_either_byte_order_are_read(hand: Hand) -> None:
    text = "vgpud é".encode()
    data = hand.section(hand.option(4, text) + hand.option(0), length=4711)
    data += hand.interface(hand.option(2, b"name") + hand.option(9, b"\x09") + hand.option(0))
    data += hand.packet(TIME, b"12345", hand.option(2, pack(hand.order + "I", 2)) + hand.option(1, b"said"))
    assert [replace(block, offset=0) for block in read(data)] == [
        Section(0, "vgpud é"),
        Interface(0, LINKTYPE_USER0, "name"),
        Packet(0, 0, TIME, b"12345", Direction.OUTBOUND, "said"),
    ]


def test_a_file_may_change_its_byte_order_and_its_interfaces_with_each_section() -> None:
    data = FILE + BIG.section() + BIG.interface() + BIG.packet(5, b"big") + FILE
    assert [block.data for block in read(data) if isinstance(block, Packet)] == [
        b"a message",
        b"event",
        b"",
        b"big",
        b"a message",
        b"event",
        b"",
    ]
    _, error = error_of(FILE + BIG.section() + BIG.interface() + BIG.packet(5, b"", interface=1))
    assert "interface 1" in str(error)


@given(st.binary(max_size=40), st.integers(15, 2**16 - 1), st.sampled_from([LITTLE, BIG]))
@example(b"", 2988, BIG)
def test_blocks_and_options_that_mean_nothing_here_are_skipped(value: bytes, code: int, hand: Hand) -> None:
    unknown = hand.option(code, value)
    other = hand.block(0x0BAD0000 | code, value)
    data = hand.section(unknown + hand.option(4, b"app") + unknown) + other
    data += hand.interface(unknown + hand.option(2, b"name")) + other
    data += hand.packet(7, b"123", unknown + hand.option(1, b"said") + unknown) + other
    section, interface, packet = read(data)
    assert (section, replace(interface, offset=0)) == (
        Section(0, "app"),
        Interface(0, LINKTYPE_USER0, "name"),
    )
    assert packet == Packet(packet.offset, 0, 7000, b"123", Direction.UNKNOWN, "said")


@either_order
def test_options_end_at_their_end_and_the_first_of_each_counts(hand: Hand) -> None:
    options = hand.option(1, b"one") + hand.option(1, b"two") + hand.option(0) + b"\xff" * 8
    start = hand.section() + hand.interface()
    assert only_packet(start + hand.packet(0, b"", options)).comment == "one"


def test_a_packet_that_was_longer_is_not_whole() -> None:
    start = LITTLE.section() + LITTLE.interface()
    assert not only_packet(start + LITTLE.packet(0, b"1234", length=5)).whole
    assert only_packet(start + LITTLE.packet(0, b"1234")).whole


@pytest.mark.parametrize(
    "what",
    [
        LITTLE.block(6, b"")[:-4] + b"\x10\0\0\0",
        LITTLE.block(6, b""),
        LITTLE.block(1, b"1234"),
        LITTLE.block(0x0A0D0D0A, pack("<I", 0x1A2B3C4D)),
        LITTLE.block(0x0A0D0D0A, b"1234"),
        LITTLE.section(major=2),
        LITTLE.packet(0, b"", LITTLE.option(1, b"12345678")[:-4]),
        LITTLE.interface(LITTLE.option(9, b"\x09\x09")),
        LITTLE.interface(LITTLE.option(9, b"\x7f")),
        LITTLE.interface(LITTLE.option(14, b"1234")),
        LITTLE.packet(0, b"", interface=2),
        LITTLE.block(6, pack("<IIIII", 0, 0, 0, 5, 5) + b"1234"),
        pack("<II", 6, 13) + bytes(100),
        pack("<II", 6, 8) + bytes(100),
        pack("<II", 6, 0),
        pack("<II", 0x0BAD, MAX_BLOCK + 4),
    ],
)
def test_damage_is_an_error_that_names_its_byte_behind_the_blocks_before(what: bytes) -> None:
    blocks, error = error_of(FILE + what)
    assert blocks == BLOCKS
    assert str(error).startswith(f"damaged at byte {len(FILE)}: ")


@pytest.mark.parametrize("what", [b"\xd4\xc3\xb2\xa1" + bytes(20), b"#!/bin/sh\n", bytes(12), FILE[1:]])
def test_what_is_no_pcapng_file_is_told_so(what: bytes) -> None:
    assert error_of(what)[0] == []
    assert "not a pcapng file" in str(error_of(what)[1])


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete"]), st.integers(0, len(FILE) - 1), st.integers(1, 255)
    ),
    min_size=1,
    max_size=4,
)


@given(edits, st.lists(st.integers(1, 100), min_size=1, max_size=5))
@example([("flip", len(FILE) - 1, 1)], [100])
def test_no_damage_gives_any_other_error(edited: list[tuple[str, int, int]], sizes: list[int]) -> None:
    data = bytearray(FILE)
    for kind, at, value in edited:
        at = min(at, len(data) - 1)
        if kind == "flip":
            data[at] ^= value
        else:
            data[at : at + (kind == "delete")] = b"" if kind == "delete" else bytes([value])
    first = next((at for at, (a, b) in enumerate(zip(data, FILE, strict=False)) if a != b), len(data))
    reading = Reading(bytes(data), cycle(sizes))
    blocks: list[Block] = []
    try:
        blocks.extend(reading)
    except PcapngError as error:
        told = re.match(r"damaged at byte (\d+): |this is not a pcapng file", str(error))
        assert told is not None
        assert int(told[1] or 0) == reading.parser.offset
        assert all(block.offset < reading.parser.offset for block in blocks)
    untouched = [block for block, end in zip(BLOCKS, ENDS, strict=True) if end <= first]
    assert blocks[: len(untouched)] == untouched


@given(st.binary(max_size=300), st.sampled_from([b"", LITTLE.section(), BIG.section() + BIG.interface()]))
def test_random_bytes_give_no_other_error(noise: bytes, before: bytes) -> None:
    parser = Parser()
    parser.feed(before + noise)
    try:
        list(parser.blocks())
    except PcapngError:
        with pytest.raises(PcapngError):
            list(parser.blocks())
    parser.feed(noise)  # which damage does not keep from being called


def test_memory_is_bounded_by_the_longest_block_however_long_the_file_is() -> None:
    parser = Parser()
    parser.feed(LITTLE.section() + LITTLE.interface())
    assert len(list(parser.blocks())) == 2
    piece = LITTLE.packet(0, bytes(1000)) * 64
    tracemalloc.start()
    try:
        for _ in range(100):
            parser.feed(piece)
            assert sum(1 for _ in parser.blocks()) == 64
        assert tracemalloc.get_traced_memory()[1] < 10 * len(piece)
    finally:
        tracemalloc.stop()


def test_the_longest_block_is_read() -> None:
    data = bytes(MAX_BLOCK - 32)
    packet = only_packet(LITTLE.section() + LITTLE.interface() + LITTLE.packet(0, data))
    assert packet.data == data


def test_a_section_has_so_many_interfaces_and_no_more() -> None:
    start = LITTLE.section() + LITTLE.interface() * MAX_INTERFACES
    packet = LITTLE.packet(0, b"", interface=MAX_INTERFACES - 1)
    assert only_packet(start + packet).interface == MAX_INTERFACES - 1
    assert "interfaces" in str(error_of(start + LITTLE.interface())[1])
