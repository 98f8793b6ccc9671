"""GET_REGION_INFO and GET_REGION_IO_FDS: capability chains, and replies that do not fit."""

from __future__ import annotations

import errno

import pytest

from protocol import (
    GetRegionInfo,
    GetRegionIoFds,
    MsixMappable,
    OtherCapability,
    ProtocolError,
    RegionFlags,
    RegionInfo,
    RegionIoFds,
    RegionType,
    SparseArea,
    SparseMmap,
    SubRegion,
)
from tests.protocol.layout import table

MAPPABLE = RegionInfo(
    2, RegionFlags.READ | RegionFlags.MMAP, 0x4000, 0, (SparseMmap((SparseArea(0x1000, 0x1000),)),)
)
WHOLE_SIZE = 32 + 16 + 16


def region_info(argsz: int, first: int, data: bytes = b"", flags: int = 0b1001) -> bytes:
    return table(
        (0, 4, argsz), (4, 4, flags), (8, 4, 2), (12, 4, first), (16, 8, 0x4000), (24, 8, 0), data=data
    )


def capability(number: int, following: int, data: bytes = b"", version: int = 1) -> bytes:
    return table((0, 2, number), (2, 2, version), (4, 4, following), data=data)


def refused(payload: bytes) -> bool:
    with pytest.raises(ProtocolError) as caught:
        RegionInfo.unpack(payload)
    return caught.value.errno == errno.EINVAL


def test_a_reply_that_fits_is_whole() -> None:
    assert len(MAPPABLE.pack(WHOLE_SIZE)) == WHOLE_SIZE
    assert RegionInfo.unpack(MAPPABLE.pack(WHOLE_SIZE)) == MAPPABLE


@pytest.mark.parametrize("room", [32, 33, WHOLE_SIZE - 1])
def test_a_reply_that_does_not_fit_is_cut_and_says_what_it_takes(room: int) -> None:
    # QEMU fails on a capability flag with a capability offset below 32, so there must be no flag.
    cut = table((0, 4, WHOLE_SIZE), (4, 4, 0b101), (8, 4, 2), (12, 4, 0), (16, 8, 0x4000), (24, 8, 0))
    assert MAPPABLE.pack(room) == cut
    assert RegionInfo.unpack(cut).needed == WHOLE_SIZE


def test_the_room_of_a_request_makes_the_second_reply_whole() -> None:
    first = GetRegionInfo.unpack(GetRegionInfo(2).pack())
    cut = RegionInfo.unpack(MAPPABLE.pack(first.argsz))
    assert cut.needed is not None
    second = GetRegionInfo.unpack(GetRegionInfo(2, cut.needed).pack())
    assert RegionInfo.unpack(MAPPABLE.pack(second.argsz)) == MAPPABLE


def test_a_cut_reply_of_the_kernel_is_read() -> None:
    assert RegionInfo.unpack(region_info(64, 0)).needed == 64


def test_capabilities_need_not_follow_each_other_closely() -> None:
    data = bytes(8) + capability(3, 64) + bytes(16) + capability(2, 0, bytes(8))
    info = RegionInfo.unpack(region_info(80, 40, data))
    assert info.capabilities == (MsixMappable(), RegionType(0, 0))


def test_unknown_capabilities_are_kept() -> None:
    data = capability(9, 48, b"12345678", version=3) + capability(3, 0)
    info = RegionInfo.unpack(region_info(56, 32, data))
    assert info.capabilities == (OtherCapability(9, 3, b"12345678"), MsixMappable())


def test_another_version_of_a_capability_is_not_interpreted() -> None:
    info = RegionInfo.unpack(region_info(40, 32, capability(1, 0, version=2)))
    assert info.capabilities == (OtherCapability(1, 2),)


@pytest.mark.parametrize("first", [8, 31, 33, 36, 40, 0x80000000])
def test_a_chain_that_starts_out_of_bounds_is_refused(first: int) -> None:
    assert refused(region_info(40, first, capability(3, 0)))


@pytest.mark.parametrize("following", [1, 32, 40, 41])
def test_a_chain_that_turns_back_or_leaves_the_reply_is_refused(following: int) -> None:
    data = capability(3, 40) + capability(3, following)
    assert refused(region_info(48, 32, data))


def test_more_areas_than_there_are_is_refused() -> None:
    data = capability(1, 0, table((0, 4, 2), (4, 4, 0), (8, 8, 0), (16, 8, 0)))
    assert refused(region_info(64, 32, data))


@pytest.mark.parametrize("argsz", [0, 31])
def test_a_short_argsz_is_refused(argsz: int) -> None:
    assert refused(region_info(argsz, 0))
    with pytest.raises(ProtocolError):
        GetRegionInfo.unpack(region_info(argsz, 0))


IO_FDS = RegionIoFds(4, (SubRegion(0x3000, 2, 0), SubRegion(0x3004, 2, 0)))


def test_io_fds_that_fit_are_whole() -> None:
    assert IO_FDS.size == 16 + 2 * 40
    assert RegionIoFds.unpack(IO_FDS.pack(IO_FDS.size)) == IO_FDS


@pytest.mark.parametrize("room", [16, 16 + 2 * 40 - 1])
def test_io_fds_that_do_not_fit_are_cut(room: int) -> None:
    assert IO_FDS.pack(room) == table((0, 4, 96), (4, 4, 0), (8, 4, 4), (12, 4, 2))
    assert RegionIoFds.unpack(IO_FDS.pack(room)) == RegionIoFds(4, needed=96)


def test_longer_entries_of_newer_peers_are_read() -> None:
    entry = table((0, 8, 0x10), (8, 8, 4), (16, 4, 1), (20, 4, 0), (24, 4, 0), (28, 4, 0), (32, 8, 7))
    payload = table((0, 4, 16 + 96), (4, 4, 0), (8, 4, 4), (12, 4, 2), data=(entry + bytes(8)) * 2)
    assert RegionIoFds.unpack(payload).sub_regions == (SubRegion(0x10, 4, 1, data=7),) * 2


@pytest.mark.parametrize("count", [3, 5, 0xFFFFFFFF])
def test_a_count_that_does_not_match_is_refused(count: int) -> None:
    payload = table((0, 4, 96), (4, 4, 0), (8, 4, 4), (12, 4, count), data=bytes(80))
    with pytest.raises(ProtocolError):
        RegionIoFds.unpack(payload)


@pytest.mark.parametrize(("flags", "count"), [(1, 0), (0, 1)])
def test_a_request_for_io_fds_has_only_an_index(flags: int, count: int) -> None:
    with pytest.raises(ProtocolError):
        GetRegionIoFds.unpack(table((0, 4, 16), (4, 4, flags), (8, 4, 4), (12, 4, count)))
