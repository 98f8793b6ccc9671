"""DMA messages: what is checked, and what peers really send."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import (
    BitmapRequest,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
    ProtocolError,
    bitmap_size,
)
from tests.protocol.layout import table


def dma_map(argsz: int = 32, flags: int = 3) -> bytes:
    return table((0, 4, argsz), (4, 4, flags), (8, 8, 0), (16, 8, 0x1000), (24, 8, 0x1000))


def dma_unmap(argsz: int, flags: int, address: int = 0, size: int = 0) -> bytes:
    return table((0, 4, argsz), (4, 4, flags), (8, 8, address), (16, 8, size))


def bitmap(page_size: int, size: int) -> bytes:
    return table((0, 8, page_size), (8, 8, size))


def refused(message: type[DmaMap | DmaUnmap | DmaReadReply | DmaWriteReply], payload: bytes) -> bool:
    with pytest.raises(ProtocolError) as caught:
        message.unpack(payload)
    return caught.value.errno == errno.EINVAL


def test_a_map_may_say_that_it_is_mappable() -> None:
    assert DmaMap.unpack(dma_map(flags=7)).flags == DmaMapFlags(7)


@pytest.mark.parametrize("flags", [8, 0x80000000, 0xFFFFFFFF])
def test_unknown_map_flags_are_refused(flags: int) -> None:
    assert refused(DmaMap, dma_map(flags=flags))


@pytest.mark.parametrize("argsz", [0, 31])
def test_a_map_with_a_short_argsz_is_refused(argsz: int) -> None:
    assert refused(DmaMap, dma_map(argsz=argsz))


def test_a_map_may_be_longer_than_is_known() -> None:
    assert DmaMap.unpack(dma_map(argsz=40) + bytes(8)) == DmaMap.unpack(dma_map())


@pytest.mark.parametrize("flags", [3, 4, 5, 8, 0xFFFFFFFF])
def test_unknown_and_conflicting_unmap_flags_are_refused(flags: int) -> None:
    assert refused(DmaUnmap, dma_unmap(4096, flags) + bitmap(4096, 8))


@pytest.mark.parametrize(("address", "size"), [(1, 0), (0, 1)])
def test_an_unmap_of_everything_has_no_range(address: int, size: int) -> None:
    assert refused(DmaUnmap, dma_unmap(24, 2, address, size))


def test_an_unmap_with_a_short_argsz_is_refused() -> None:
    assert refused(DmaUnmap, dma_unmap(23, 0))


def test_an_unmap_without_room_for_its_bitmap_is_refused() -> None:
    request = bitmap(4096, 8)
    assert DmaUnmap.unpack(dma_unmap(48, 1, 0, 4096) + request).bitmap == BitmapRequest(4096, 8)
    assert refused(DmaUnmap, dma_unmap(47, 1, 0, 4096) + request)


def test_an_unmap_whose_bitmap_would_overflow_is_refused() -> None:
    assert refused(DmaUnmap, dma_unmap(0xFFFFFFFF, 1, 0, 4096) + bitmap(4096, 2**64 - 8))


@pytest.mark.parametrize("page_size", [0, 3, 4095, 2**64 - 1])
def test_a_bitmap_of_odd_pages_is_refused(page_size: int) -> None:
    assert refused(DmaUnmap, dma_unmap(4096, 1, 0, 4096) + bitmap(page_size, 8))


def test_a_bitmap_that_does_not_cover_the_range_is_refused() -> None:
    assert DmaUnmap.unpack(dma_unmap(4096, 1, 0, 64 * 4096) + bitmap(4096, 8)).bitmap is not None
    assert refused(DmaUnmap, dma_unmap(4096, 1, 0, 65 * 4096) + bitmap(4096, 8))


def test_an_unmap_is_answered_with_its_own_fields() -> None:
    payload = dma_unmap(1000, 0, 0x1000, 0x2000)
    assert DmaUnmap.unpack(payload).reply().pack() == payload


def test_a_bitmap_is_padded_to_the_size_that_was_asked_for() -> None:
    request = DmaUnmap(0x1000, 0x1000, DmaUnmapFlags.GET_DIRTY_BITMAP, BitmapRequest(4096, 16))
    reply = request.reply(b"\1")
    assert reply.bitmap == b"\1" + bytes(15)
    assert len(reply.pack()) == request.reply_size == request.argsz
    assert DmaUnmapReply.unpack(reply.pack()) == reply


@given(st.integers(0, 1 << 50), st.sampled_from([1, 4096, 1 << 30]))
def test_a_bitmap_has_a_bit_for_each_page_and_whole_words(length: int, page_size: int) -> None:
    size = bitmap_size(length, page_size)
    assert size % 8 == 0
    assert size * 8 * page_size >= length
    assert (size - 8) * 8 * page_size < length or size == 0


def test_a_write_reply_is_read_as_the_specification_has_it() -> None:
    payload = table((0, 8, 0x1000), (8, 4, 3))
    assert DmaWriteReply.unpack(payload) == DmaWriteReply(0x1000, 3)


def test_a_write_reply_is_read_as_libvfio_user_has_it() -> None:
    payload = table((0, 8, 0x1000), (8, 8, 3))
    assert DmaWriteReply.unpack(payload) == DmaWriteReply(0x1000, 3)


def test_a_write_reply_is_read_as_qemu_has_it() -> None:
    reply = DmaWriteReply.unpack(b"")
    assert reply == DmaWriteReply()
    assert reply.answers(DmaWrite(0x1000, b"abc"))


@pytest.mark.parametrize("length", [1, 8, 11, 13, 15, 17])
def test_a_write_reply_of_another_size_is_refused(length: int) -> None:
    assert refused(DmaWriteReply, bytes(length))


@pytest.mark.parametrize("reply", [DmaWriteReply(0x1001, 3), DmaWriteReply(0x1000, 2)])
def test_a_write_reply_must_match_its_request(reply: DmaWriteReply) -> None:
    assert not reply.answers(DmaWrite(0x1000, b"abc"))
    assert DmaWriteReply(0x1000, 3).answers(DmaWrite(0x1000, b"abc"))


@pytest.mark.parametrize("reply", [DmaReadReply(0x1001, b"abc"), DmaReadReply(0x1000, b"ab")])
def test_a_read_reply_must_match_its_request(reply: DmaReadReply) -> None:
    assert not reply.answers(DmaRead(0x1000, 3))
    assert DmaReadReply(0x1000, b"abc").answers(DmaRead(0x1000, 3))


def test_a_read_reply_with_data_in_its_count_is_refused() -> None:
    old_qemu = table((0, 8, 0x1000), (8, 4, 4), (12, 4, 0x64636261), (16, 4, 0))
    assert refused(DmaReadReply, old_qemu)
