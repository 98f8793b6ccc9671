"""Hypothesis strategies for every message value."""

from __future__ import annotations

from hypothesis import strategies as st

from protocol import (
    Acknowledgement,
    BitmapRequest,
    Capabilities,
    Command,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqAction,
    IrqData,
    IrqFlags,
    IrqInfo,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationCapability,
    MsixMappable,
    OtherCapability,
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
    Reply,
    Request,
    SetIrqs,
    SparseArea,
    SparseMmap,
    SubRegion,
    TwinSocket,
    Version,
    bitmap_size,
)

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
data = st.binary(max_size=64)
page_size = st.sampled_from([1, 4096, 65536, 1 << 21])


def _maybe(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | strategy


def argsz(least: int) -> st.SearchStrategy[int]:
    return st.integers(least, 2**32 - 1)


capabilities = st.builds(
    Capabilities,
    max_msg_fds=_maybe(u64),
    max_data_xfer_size=_maybe(st.integers(1, 2**64 - 1)),
    max_dma_maps=_maybe(u64),
    pgsizes=_maybe(st.integers(1, 2**64 - 1)),
    twin_socket=st.none() | st.builds(TwinSocket, st.booleans(), _maybe(u64)),
    write_multiple=st.none() | st.booleans(),
    migration=st.none() | st.builds(MigrationCapability, _maybe(st.integers(1, 2**64 - 1)), _maybe(u64)),
)
version = st.builds(Version, u16, u16, st.none() | capabilities)


@st.composite
def bitmap_unmaps(draw: st.DrawFn) -> DmaUnmap:
    pages = draw(st.integers(0, 1000))
    unit = draw(page_size)
    size = bitmap_size(pages * unit, unit) + draw(st.integers(0, 16))
    return DmaUnmap(draw(u64), pages * unit, DmaUnmapFlags.GET_DIRTY_BITMAP, BitmapRequest(unit, size))


@st.composite
def set_irqs(draw: st.DrawFn) -> SetIrqs:
    kind = draw(st.sampled_from(IrqData))
    action = draw(st.sampled_from(IrqAction))
    index = draw(u32)
    if kind is IrqData.BOOL:
        bools = tuple(draw(st.lists(st.booleans(), min_size=1, max_size=20)))
        return SetIrqs(index, draw(st.integers(0, 2048)), len(bools), kind, action, bools)
    if kind is IrqData.NONE and draw(st.booleans()):
        return SetIrqs(index, 0, 0, kind, action)
    count = draw(st.integers(1, 2**32 - 1))
    return SetIrqs(index, draw(st.integers(0, 2**32 - 1 - count)), count, kind, action)


aligned = st.integers(0, 8).flatmap(lambda words: st.binary(min_size=8 * words, max_size=8 * words))
region_capability = st.one_of(
    st.builds(SparseMmap, st.lists(st.builds(SparseArea, u64, u64), max_size=5).map(tuple)),
    st.builds(RegionType, u32, u32),
    st.just(MsixMappable()),
    st.builds(OtherCapability, st.integers(4, 2**16 - 1), u16, aligned),
)
region_flags = st.sampled_from(
    [RegionFlags.NONE, RegionFlags.READ, RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP]
)
sub_region = st.builds(SubRegion, u64, u64, u32, u32, u32, u64)
feature_flags = st.sampled_from(
    [
        FeatureFlags.GET,
        FeatureFlags.SET,
        FeatureFlags.PROBE,
        FeatureFlags.PROBE | FeatureFlags.GET,
        FeatureFlags.PROBE | FeatureFlags.GET | FeatureFlags.SET,
    ]
)
feature = st.builds(DeviceFeature, u16, feature_flags, data, argsz(8))
small_write = st.builds(RegionWrite, u64, u32, st.binary(max_size=8))

REQUESTS: dict[Command, st.SearchStrategy[Request]] = {
    Command.VERSION: version,
    Command.DMA_MAP: st.builds(
        DmaMap, u64, u64, st.sampled_from([DmaMapFlags(bits) for bits in range(8)]), u64
    ),
    Command.DMA_UNMAP: st.one_of(
        st.builds(DmaUnmap, u64, u64, argsz=argsz(24)),
        st.builds(DmaUnmap, flags=st.just(DmaUnmapFlags.ALL), argsz=argsz(24)),
        bitmap_unmaps(),
    ),
    Command.DEVICE_GET_INFO: st.builds(GetInfo, argsz(16)),
    Command.DEVICE_GET_REGION_INFO: st.builds(GetRegionInfo, u32, argsz(32)),
    Command.DEVICE_GET_REGION_IO_FDS: st.builds(GetRegionIoFds, u32, argsz(16)),
    Command.DEVICE_GET_IRQ_INFO: st.builds(GetIrqInfo, u32, argsz(16)),
    Command.DEVICE_SET_IRQS: set_irqs(),
    Command.REGION_READ: st.builds(RegionRead, u64, u32, u32),
    Command.REGION_WRITE: st.builds(RegionWrite, u64, u32, data),
    Command.DMA_READ: st.builds(DmaRead, u64, u64),
    Command.DMA_WRITE: st.builds(DmaWrite, u64, data),
    Command.DEVICE_RESET: st.just(DeviceReset()),
    Command.REGION_WRITE_MULTI: st.builds(RegionWriteMulti, st.lists(small_write, max_size=5).map(tuple)),
    Command.DEVICE_FEATURE: feature,
    Command.MIG_DATA_READ: st.builds(MigDataRead, u32, argsz(8)),
    Command.MIG_DATA_WRITE: st.builds(MigDataWrite, data),
}
"""Valid requests, by command."""

_acknowledgement = st.just(Acknowledgement())

REPLIES: dict[Command, st.SearchStrategy[Reply]] = {
    Command.VERSION: version,
    Command.DMA_MAP: _acknowledgement,
    Command.DMA_UNMAP: st.one_of(
        st.builds(DmaUnmapReply, u64, u64, argsz=u32),
        st.builds(DmaUnmapReply, u64, u64, st.just(DmaUnmapFlags.GET_DIRTY_BITMAP), u64, data, u32),
    ),
    Command.DEVICE_GET_INFO: st.builds(
        DeviceInfo, st.sampled_from([DeviceFlags.PCI, DeviceFlags.PCI | DeviceFlags.RESET]), u32, u32
    ),
    Command.DEVICE_GET_REGION_INFO: st.one_of(
        st.builds(
            RegionInfo, u32, region_flags, u64, u64, st.lists(region_capability, max_size=4).map(tuple)
        ),
        st.builds(RegionInfo, u32, region_flags, u64, u64, needed=argsz(33)),
    ),
    Command.DEVICE_GET_REGION_IO_FDS: st.one_of(
        st.builds(RegionIoFds, u32, st.lists(sub_region, max_size=4).map(tuple)),
        st.builds(RegionIoFds, u32, needed=argsz(17)),
    ),
    Command.DEVICE_GET_IRQ_INFO: st.builds(
        IrqInfo, u32, st.sampled_from([IrqFlags.NONE, IrqFlags.EVENTFD | IrqFlags.NORESIZE]), u32
    ),
    Command.DEVICE_SET_IRQS: _acknowledgement,
    Command.REGION_READ: st.builds(RegionReadReply, u64, u32, data),
    Command.REGION_WRITE: st.builds(RegionWriteReply, u64, u32, u32),
    Command.DMA_READ: st.builds(DmaReadReply, u64, data),
    Command.DMA_WRITE: st.just(DmaWriteReply()) | st.builds(DmaWriteReply, u64, u64),
    Command.DEVICE_RESET: _acknowledgement,
    Command.REGION_WRITE_MULTI: st.builds(RegionWriteMultiReply, u64),
    Command.DEVICE_FEATURE: feature,
    Command.MIG_DATA_READ: st.builds(MigDataReadReply, data),
    Command.MIG_DATA_WRITE: _acknowledgement,
}
"""Valid replies of success, by command."""

commands = st.sampled_from(Command)
requests = commands.flatmap(lambda command: REQUESTS[command])


@st.composite
def replies(draw: st.DrawFn) -> tuple[Command, Reply]:
    command = draw(commands)
    return command, draw(REPLIES[command])
