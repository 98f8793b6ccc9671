"""Messages that say how much data they bring must bring exactly that."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from protocol import (
    DmaReadReply,
    DmaWrite,
    MigDataReadReply,
    MigDataWrite,
    ProtocolError,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
)
from tests.protocol.layout import table


def region(count: int) -> bytes:
    return table((0, 8, 0x10), (8, 4, 1), (12, 4, count), data=b"abcd")


def dma(count: int) -> bytes:
    return table((0, 8, 0x1000), (8, 8, count), data=b"abcd")


def migration(count: int) -> bytes:
    return table((0, 4, 12), (4, 4, count), data=b"abcd")


WITH_DATA: list[tuple[Callable[[bytes], object], Callable[[int], bytes]]] = [
    (RegionReadReply.unpack, region),
    (RegionWrite.unpack, region),
    (DmaReadReply.unpack, dma),
    (DmaWrite.unpack, dma),
    (MigDataReadReply.unpack, migration),
    (MigDataWrite.unpack, migration),
]
NAMES = ["RegionReadReply", "RegionWrite", "DmaReadReply", "DmaWrite", "MigDataReadReply", "MigDataWrite"]


def refused(unpack: Callable[[bytes], object], payload: bytes) -> bool:
    with pytest.raises(ProtocolError) as caught:
        unpack(payload)
    return caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(("unpack", "build"), WITH_DATA, ids=NAMES)
@pytest.mark.parametrize("count", [0, 3, 5, 0xFFFFFFFF])
def test_a_count_that_is_not_the_length_of_the_data_is_refused(
    unpack: Callable[[bytes], object], build: Callable[[int], bytes], count: int
) -> None:
    unpack(build(4))
    assert refused(unpack, build(count))


def multi(count: int, length: int = 8) -> bytes:
    write = table((0, 8, 0x10), (8, 4, 1), (12, 4, length), data=b"abcdefgh")
    return table((0, 8, count)) + write * 2


@pytest.mark.parametrize("count", [0, 1, 3, 2**64 - 1])
def test_a_count_of_writes_that_are_not_there_is_refused(count: int) -> None:
    assert len(RegionWriteMulti.unpack(multi(2)).writes) == 2
    assert refused(RegionWriteMulti.unpack, multi(count))


@pytest.mark.parametrize("length", [9, 0xFFFFFFFF])
def test_a_write_of_several_has_eight_bytes_at_most(length: int) -> None:
    assert refused(RegionWriteMulti.unpack, multi(2, length))


def test_half_a_write_is_refused() -> None:
    assert refused(RegionWriteMulti.unpack, multi(2)[:-12])
