"""Where a pcapng file ends: one that was cut short is told from one with a length that is damaged."""

from __future__ import annotations

from struct import pack_into

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.pcapng import Block, Parser, PcapngError
from tests.protocol.test_pcapng import BIG, BLOCKS, ENDS, FILE, TIME, Hand, either_order, files, written

BEGINS = [0, *ENDS[:-1]]
MORE = bytes(200)
"""What is behind in the file, and lost if nobody notices."""


def ended(data: bytes) -> Parser:
    parser = Parser()
    parser.feed(data)
    list(parser.blocks())
    parser.end()
    return parser


@given(files(), st.data())
def test_a_file_of_ours_that_was_cut_anywhere_is_not_damaged(
    blocks: list[Block], data: st.DataObject
) -> None:
    whole, _ = written(blocks)
    cut = data.draw(st.integers(0, len(whole)))
    assert ended(whole[:cut]).offset <= cut


@either_order
def test_a_file_of_somebody_elses_that_was_cut_anywhere_is_not_damaged(hand: Hand) -> None:
    options = hand.option(1, b"a comment") + hand.option(2988, b"\0" * 7)  # section 3.5.1: of anybody's own
    data = hand.section(options) + hand.interface(options + hand.option(0)) + hand.block(5, b"statistics" * 9)
    data += (
        hand.packet(1, b"data", options)
        + hand.packet(2, b"more", options + hand.option(0))
        + hand.packet(3, b"")
    )
    for cut in range(len(data) + 1):
        ended(data[:cut])


@pytest.mark.parametrize("longer", [4, 8, 64, 1000, 1 << 20, 16 << 20])
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_that_says_to_be_longer_than_it_is_does_not_swallow_the_rest(
    number: int, longer: int
) -> None:
    data = bytearray(FILE + FILE + MORE)
    start, end = BEGINS[number], ENDS[number]
    pack_into("<I", data, start + 4, end - start + longer)
    with pytest.raises(PcapngError, match=f"damaged at byte {start}: "):
        ended(bytes(data))


@pytest.mark.parametrize("captured", [1 << 20, 0xFFFFFFF0])
def test_a_packet_that_says_to_have_more_data_than_its_block_is_damaged(captured: int) -> None:
    whole = BIG.section() + BIG.interface()
    data = bytearray(whole + BIG.packet(TIME, b"message"))
    pack_into(">I", data, len(whole) + 4, 1 << 16)
    pack_into(">I", data, len(whole) + 20, captured)
    with pytest.raises(PcapngError, match=f"damaged at byte {len(whole)}: "):
        ended(bytes(data))


def test_an_option_that_is_longer_than_its_block_is_damage() -> None:
    whole = BIG.section() + BIG.interface()
    packet = bytearray(BIG.packet(TIME, b"data", BIG.option(1, b"a comment") + BIG.option(0)))
    pack_into(">I", packet, 4, len(packet) + 8)
    pack_into(">H", packet, 34, 400)
    with pytest.raises(PcapngError, match=f"damaged at byte {len(whole)}: "):
        ended(whole + bytes(packet))
