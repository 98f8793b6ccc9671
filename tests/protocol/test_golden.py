"""Payloads against bytes written by hand from the tables of the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from protocol import (
    BitmapRequest,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    DeviceState,
    DmaLoggingControl,
    DmaLoggingReport,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
    Feature,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IoEventFdFlags,
    IoFdType,
    IrqAction,
    IrqData,
    IrqFlags,
    IrqInfo,
    LoggingRange,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationFlags,
    MigrationState,
    MigrationSupport,
    MsixMappable,
    PciIrq,
    PciRegion,
    RegionFlags,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionType,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    SparseArea,
    SparseMmap,
    SubRegion,
)
from tests.protocol.layout import table


class Value(Protocol):
    def pack(self) -> bytes: ...


MINUS_ONE = 0xFFFFFFFF

REGION_INFO_WITH_CAPABILITIES = table(
    (0, 4, 104),
    (4, 4, 0b1111),
    (8, 4, 2),
    (12, 4, 32),
    (16, 8, 0x10000),
    (24, 8, 0x2000),
    # Sparse mmap, version 1, next at 80: two areas.
    (32, 2, 1),
    (34, 2, 1),
    (36, 4, 80),
    (40, 4, 2),
    (44, 4, 0),
    (48, 8, 0x1000),
    (56, 8, 0x1000),
    (64, 8, 0x4000),
    (72, 8, 0x2000),
    # Type, version 1, next at 96.
    (80, 2, 2),
    (82, 2, 1),
    (84, 4, 96),
    (88, 4, 0x80008086),
    (92, 4, 5),
    # MSI-X mappable, version 1, the last.
    (96, 2, 3),
    (98, 2, 1),
    (100, 4, 0),
)

GOLDEN: list[tuple[Value, bytes]] = [
    (
        DmaMap(0x100000000, 0x200000, DmaMapFlags.READ | DmaMapFlags.WRITE, 0x80000000),
        table((0, 4, 32), (4, 4, 3), (8, 8, 0x80000000), (16, 8, 0x100000000), (24, 8, 0x200000)),
    ),
    (
        DmaUnmap(0x100000000, 0x200000),
        table((0, 4, 24), (4, 4, 0), (8, 8, 0x100000000), (16, 8, 0x200000)),
    ),
    (DmaUnmap(flags=DmaUnmapFlags.ALL), table((0, 4, 24), (4, 4, 2), (8, 8, 0), (16, 8, 0))),
    (
        DmaUnmap(0x1000, 0x41000, DmaUnmapFlags.GET_DIRTY_BITMAP, BitmapRequest(4096, 16)),
        table((0, 4, 56), (4, 4, 1), (8, 8, 0x1000), (16, 8, 0x41000), (24, 8, 4096), (32, 8, 16)),
    ),
    (
        DmaUnmapReply(0x1000, 0x2000, DmaUnmapFlags.GET_DIRTY_BITMAP, 4096, b"\3" + bytes(7), 48),
        table((0, 4, 48), (4, 4, 1), (8, 8, 0x1000), (16, 8, 0x2000), (24, 8, 4096), (32, 8, 8), (40, 8, 3)),
    ),
    (GetInfo(), table((0, 4, 16), (4, 4, 0), (8, 4, 0), (12, 4, 0))),
    (
        DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5),
        table((0, 4, 16), (4, 4, 0b11), (8, 4, 9), (12, 4, 5)),
    ),
    (
        GetRegionInfo(PciRegion.CONFIG),
        table((0, 4, 32), (4, 4, 0), (8, 4, 7), (12, 4, 0), (16, 8, 0), (24, 8, 0)),
    ),
    (
        RegionInfo(PciRegion.BAR2, RegionFlags.READ | RegionFlags.WRITE, 0x4000),
        table((0, 4, 32), (4, 4, 0b11), (8, 4, 2), (12, 4, 0), (16, 8, 0x4000), (24, 8, 0)),
    ),
    (
        RegionInfo(
            2,
            RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP,
            0x10000,
            0x2000,
            (
                SparseMmap((SparseArea(0x1000, 0x1000), SparseArea(0x4000, 0x2000))),
                RegionType(0x80008086, 5),
                MsixMappable(),
            ),
        ),
        REGION_INFO_WITH_CAPABILITIES,
    ),
    (GetRegionIoFds(4, 1024), table((0, 4, 1024), (4, 4, 0), (8, 4, 4), (12, 4, 0))),
    (
        RegionIoFds(
            4,
            (
                SubRegion(0x3000, 2, 0, IoFdType.IOEVENTFD, IoEventFdFlags.DATAMATCH, 1),
                SubRegion(0x100, 4, 1, IoFdType.IOREGIONFD, 0, 99),
            ),
        ),
        table(
            (0, 4, 16 + 2 * 40),
            (4, 4, 0),
            (8, 4, 4),
            (12, 4, 2),
            *((16, 8, 0x3000), (24, 8, 2), (32, 4, 0), (36, 4, 0), (40, 4, 1), (44, 4, 0), (48, 8, 1)),
            *((56, 8, 0x100), (64, 8, 4), (72, 4, 1), (76, 4, 1), (80, 4, 0), (84, 4, 0), (88, 8, 99)),
        ),
    ),
    (GetIrqInfo(PciIrq.MSIX), table((0, 4, 16), (4, 4, 0), (8, 4, 2), (12, 4, 0))),
    (
        IrqInfo(PciIrq.MSIX, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 3),
        table((0, 4, 16), (4, 4, 0b1001), (8, 4, 2), (12, 4, 3)),
    ),
    (
        SetIrqs(2, 0, 3, IrqData.EVENTFD, IrqAction.TRIGGER),
        table((0, 4, 20), (4, 4, 0b100100), (8, 4, 2), (12, 4, 0), (16, 4, 3)),
    ),
    (
        SetIrqs(2, 0, 0, IrqData.NONE, IrqAction.TRIGGER),
        table((0, 4, 20), (4, 4, 0b100001), (8, 4, 2), (12, 4, 0), (16, 4, 0)),
    ),
    (
        SetIrqs(0, 1, 2, IrqData.BOOL, IrqAction.MASK, (True, False)),
        table((0, 4, 22), (4, 4, 0b1010), (8, 4, 0), (12, 4, 1), (16, 4, 2), (20, 1, 1), (21, 1, 0)),
    ),
    (RegionRead(0x14, 4, 4), table((0, 8, 0x14), (8, 4, 4), (12, 4, 4))),
    (RegionReadReply(0x14, 4, b"abcd"), table((0, 8, 0x14), (8, 4, 4), (12, 4, 4), data=b"abcd")),
    (RegionWrite(0x14, 4, b"ab"), table((0, 8, 0x14), (8, 4, 4), (12, 4, 2), data=b"ab")),
    (RegionWriteReply(0x14, 4, 2), table((0, 8, 0x14), (8, 4, 4), (12, 4, 2))),
    (
        RegionWriteMulti((RegionWrite(0x10, 1, b"abcdefgh"), RegionWrite(0x20, 2, b"xy"))),
        table((0, 8, 2), (8, 8, 0x10), (16, 4, 1), (20, 4, 8), data=b"abcdefgh")
        + table((0, 8, 0x20), (8, 4, 2), (12, 4, 2), data=b"xy\0\0\0\0\0\0"),
    ),
    (RegionWriteMultiReply(2), table((0, 8, 2))),
    (DmaRead(0x123456789A, 4096), table((0, 8, 0x123456789A), (8, 8, 4096))),
    (DmaReadReply(0x1000, b"abc"), table((0, 8, 0x1000), (8, 8, 3), data=b"abc")),
    (DmaWrite(0x1000, b"abc"), table((0, 8, 0x1000), (8, 8, 3), data=b"abc")),
    (DmaWriteReply(0x1000, 3), table((0, 8, 0x1000), (8, 8, 3))),
    (
        DeviceFeature(Feature.MIGRATION, FeatureFlags.GET, argsz=16),
        table((0, 4, 16), (4, 4, 1 << 16 | 1)),
    ),
    (
        DeviceFeature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET),
        table((0, 4, 8), (4, 4, 1 << 17 | 7)),
    ),
    (
        DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.PROBE | FeatureFlags.GET),
        table((0, 4, 8), (4, 4, 1 << 18 | 1 << 16 | 8)),
    ),
    (MigrationSupport(MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY), table((0, 8, 0b101))),
    (MigrationState(DeviceState.STOP_COPY), table((0, 4, 3), (4, 4, MINUS_ONE))),
    (
        DmaLoggingControl(4096, (LoggingRange(0x1000, 0x2000), LoggingRange(0x8000, 0x1000))),
        table(
            (0, 8, 4096),
            (8, 4, 2),
            (12, 4, 0),
            (16, 8, 0x1000),
            (24, 8, 0x2000),
            (32, 8, 0x8000),
            (40, 8, 0x1000),
        ),
    ),
    (
        DmaLoggingReport(0x1000, 0x2000, 4096, b"\1" + bytes(7)),
        table((0, 8, 0x1000), (8, 8, 0x2000), (16, 8, 4096), (24, 8, 1)),
    ),
    (MigDataRead(100, 108), table((0, 4, 108), (4, 4, 100))),
    (MigDataReadReply(b"state"), table((0, 4, 13), (4, 4, 5), data=b"state")),
    (MigDataWrite(b"state"), table((0, 4, 13), (4, 4, 5), data=b"state")),
]


@pytest.mark.parametrize(("value", "payload"), GOLDEN, ids=lambda part: type(part).__name__)
def test_a_message_is_packed_as_the_tables_say(value: Value, payload: bytes) -> None:
    assert value.pack() == payload


@pytest.mark.parametrize(("value", "payload"), GOLDEN, ids=lambda part: type(part).__name__)
def test_a_message_is_unpacked_as_the_tables_say(value: Value, payload: bytes) -> None:
    unpack: Callable[[bytes], Value] = type(value).unpack  # type: ignore[attr-defined]
    assert unpack(payload) == value
