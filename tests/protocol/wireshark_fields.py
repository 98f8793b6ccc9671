"""Which fields Wireshark should show of a message, from what our decoder makes of it."""

from __future__ import annotations

from enum import IntFlag
from functools import singledispatch

from protocol import (
    Acknowledgement,
    DeviceFeature,
    DeviceInfo,
    DeviceReset,
    DmaLoggingControl,
    DmaLoggingReport,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
    ErrorReply,
    Feature,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    Header,
    IrqAction,
    IrqData,
    IrqFlags,
    IrqInfo,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationState,
    MigrationSupport,
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
    SparseMmap,
    Version,
)
from protocol.region_info import RegionCapability
from protocol.vfio import DeviceFlags
from tests.protocol.tshark import Row, Value

FeatureData = MigrationSupport | MigrationState | DmaLoggingControl | DmaLoggingReport


def header_fields(header: Header) -> Row:
    return _fields(
        {
            "message_id": header.message_id,
            "command": header.command,
            "size": header.size,
            "flags": header.flags,
            "flags.type": 1 if header.is_reply else 0,
            "flags.no_reply": header.no_reply,
            "flags.error": header.is_error,
            "errno": header.error,
        }
    )


def feature_data(value: DeviceFeature, *, reply: bool) -> FeatureData | None:
    """The data of a feature, as the table of protocol/feature.py says. Raises ProtocolError."""
    get, put = FeatureFlags.GET in value.flags, FeatureFlags.SET in value.flags
    # A reply that does not fit comes without its data.
    if value.probe or (reply and not value.data):
        return None
    if value.feature == Feature.MIGRATION and get and reply:
        return MigrationSupport.unpack(value.data)
    if value.feature == Feature.MIG_DEVICE_STATE and (put or reply):
        return MigrationState.unpack(value.data)
    if value.feature == Feature.DMA_LOGGING_START and put:
        return DmaLoggingControl.unpack(value.data)
    if value.feature == Feature.DMA_LOGGING_REPORT and get:
        return DmaLoggingReport.unpack(value.data)
    return None


def payload_fields(value: Request | Reply | ErrorReply, *, reply: bool) -> Row:
    if isinstance(value, DeviceFeature):
        return _feature(value, reply=reply)
    return _payload(value)


def _fields(values: dict[str, Value]) -> Row:
    """Wireshark shows no empty bytes."""
    return {f"vfio_user.{name}": [value] for name, value in values.items() if value != b""}


def _join(*parts: Row) -> Row:
    joined: Row = {}
    for part in parts:
        for name, values in part.items():
            joined[name] = joined.get(name, []) + values
    return joined


def _flags(name: str, flags: IntFlag) -> Row:
    bits: dict[str, Value] = {f"{name}.{bit.name}".lower(): bit in flags for bit in type(flags)}
    return _fields({name: int(flags)} | bits)


@singledispatch
def _payload(value: object) -> Row:
    raise NotImplementedError(value)


@_payload.register(Acknowledgement)
@_payload.register(DeviceReset)
@_payload.register(ErrorReply)
def _(value: object) -> Row:
    return {}


@_payload.register
def _(value: Version) -> Row:
    numbers = _fields({"version.major": value.major, "version.minor": value.minor})
    if value.capabilities is None:
        return numbers
    return numbers | _fields({"version.json": value.capabilities.pack().removesuffix(b"\0").decode()})


@_payload.register
def _(value: DmaMap) -> Row:
    numbers = {"argsz": 32, "dma.offset": value.offset, "dma.address": value.address, "dma.size": value.size}
    return _fields({**numbers}) | _flags("dma.flags", value.flags)


@_payload.register
def _(value: DmaUnmap) -> Row:
    bitmap: dict[str, Value] = {}
    if value.bitmap is not None:
        bitmap = {"dma.bitmap.page_size": value.bitmap.page_size, "dma.bitmap.size": value.bitmap.size}
    numbers = {"argsz": value.argsz, "dma.address": value.address, "dma.size": value.size}
    return _fields(numbers | bitmap) | _flags("dma.unmap_flags", value.flags)


@_payload.register
def _(value: DmaUnmapReply) -> Row:
    bitmap: dict[str, Value] = {}
    if value.flags:
        bitmap = {"dma.bitmap.page_size": value.page_size, "dma.bitmap.size": len(value.bitmap)}
        bitmap["dma.bitmap.data"] = value.bitmap
    numbers = {"argsz": value.argsz, "dma.address": value.address, "dma.size": value.size}
    return _fields(numbers | bitmap) | _flags("dma.unmap_flags", value.flags)


@_payload.register(DmaRead)
def _(value: DmaRead) -> Row:
    return _fields({"dma.address": value.address, "dma.count": value.count})


@_payload.register(DmaReadReply)
@_payload.register(DmaWrite)
def _(value: DmaReadReply | DmaWrite) -> Row:
    return _fields({"dma.address": value.address, "dma.count": len(value.data), "dma.data": value.data})


@_payload.register
def _(value: DmaWriteReply) -> Row:
    if value.address is None or value.count is None:
        return {}
    return _fields({"dma.address": value.address, "dma.count": value.count})


def _device_info(argsz: int, flags: DeviceFlags, num_regions: int, num_irqs: int) -> Row:
    numbers = {"argsz": argsz, "device.num_regions": num_regions, "device.num_irqs": num_irqs}
    return _fields({**numbers}) | _flags("device.flags", flags)


@_payload.register
def _(value: GetInfo) -> Row:
    return _device_info(value.argsz, DeviceFlags(0), 0, 0)


@_payload.register
def _(value: DeviceInfo) -> Row:
    return _device_info(16, value.flags, value.num_regions, value.num_irqs)


@_payload.register
def _(value: GetRegionInfo) -> Row:
    numbers = {"argsz": value.argsz, "region.index": value.index, "region.cap_offset": 0}
    return _fields({**numbers, "region.size": 0, "region.mmap_offset": 0}) | _flags(
        "region.flags", RegionFlags.NONE
    )


@_payload.register
def _(value: RegionInfo) -> Row:
    end = 32
    chain: list[Row] = []
    for position, capability in enumerate(value.capabilities, start=1):
        size, fields = _capability(capability)
        end += 8 + -(-size // 8) * 8
        following = end if position < len(value.capabilities) else 0
        chain.append(_join(_fields({"region.cap.next": following}), fields))
    flags = value.flags | RegionFlags.CAPS if chain else value.flags
    numbers = {
        "argsz": end if value.needed is None else value.needed,
        "region.index": value.index,
        "region.cap_offset": 32 if chain else 0,
        "region.size": value.size,
        "region.mmap_offset": value.offset,
    }
    return _join(_fields({**numbers}), _flags("region.flags", flags), *chain)


def _capability(capability: RegionCapability) -> tuple[int, Row]:
    """The size behind the header, and the fields, without where the next one is."""
    match capability:
        case SparseMmap(areas):
            start = _fields(
                {"region.cap.id": 1, "region.cap.version": 1, "region.sparse.num_areas": len(areas)}
            )
            shown = [
                _fields({"region.sparse.offset": area.offset, "region.sparse.size": area.size})
                for area in areas
            ]
            return 8 + 16 * len(areas), _join(start, *shown)
        case RegionType(kind, subtype):
            numbers = {"region.cap.id": 2, "region.cap.version": 1}
            return 8, _fields({**numbers, "region.type.type": kind, "region.type.subtype": subtype})
        case MsixMappable():
            return 0, _fields({"region.cap.id": 3, "region.cap.version": 1})
        case OtherCapability(number, version, data):
            numbers = {"region.cap.id": number, "region.cap.version": version}
            return len(data), _fields({**numbers, "region.cap.data": data})


def _io_fds(argsz: int, index: int, count: int) -> Row:
    numbers = {"argsz": argsz, "io_fds.flags": 0, "region.index": index, "io_fds.count": count}
    return _fields({**numbers})


@_payload.register
def _(value: GetRegionIoFds) -> Row:
    return _io_fds(value.argsz, value.index, 0)


@_payload.register
def _(value: RegionIoFds) -> Row:
    if value.needed is not None:
        return _io_fds(value.needed, value.index, (value.needed - 16) // 40)
    subs = [
        _fields(
            {
                "io_fd.offset": sub.offset,
                "io_fd.size": sub.size,
                "io_fd.fd_index": sub.fd_index,
                "io_fd.type": sub.type,
                "io_fd.flags": sub.flags,
                "io_fd.data": sub.data,
            }
        )
        for sub in value.sub_regions
    ]
    return _join(_io_fds(16 + 40 * len(subs), value.index, len(subs)), *subs)


def _irq_info(argsz: int, flags: IrqFlags, index: int, count: int) -> Row:
    return _fields({"argsz": argsz, "irq.index": index, "irq.count": count}) | _flags("irq.flags", flags)


@_payload.register
def _(value: GetIrqInfo) -> Row:
    return _irq_info(value.argsz, IrqFlags.NONE, value.index, 0)


@_payload.register
def _(value: IrqInfo) -> Row:
    return _irq_info(16, value.flags, value.index, value.count)


@_payload.register
def _(value: SetIrqs) -> Row:
    flags: dict[str, Value] = {"irq.set_flags": value.data | value.action}
    for bit in (*IrqData, *IrqAction):
        flags[f"irq.set_flags.{bit.name}".lower()] = bit in (value.data, value.action)
    numbers = {"irq.index": value.index, "irq.start": value.start, "irq.count": value.count}
    shown = _fields({"argsz": 20 + len(value.bools), **numbers, **flags})
    return shown | ({"vfio_user.irq.bool": list(value.bools)} if value.bools else {})


@_payload.register(RegionRead)
@_payload.register(RegionWriteReply)
def _(value: RegionRead | RegionWriteReply) -> Row:
    return _fields({"region.offset": value.offset, "region.index": value.region, "region.count": value.count})


@_payload.register(RegionReadReply)
@_payload.register(RegionWrite)
def _(value: RegionReadReply | RegionWrite) -> Row:
    place = {"region.offset": value.offset, "region.index": value.region}
    return _fields({**place, "region.count": len(value.data), "region.data": value.data})


@_payload.register
def _(value: RegionWriteMulti) -> Row:
    return _join(_fields({"region.num_writes": len(value.writes)}), *map(_payload, value.writes))


@_payload.register
def _(value: RegionWriteMultiReply) -> Row:
    return _fields({"region.num_writes": value.count})


@_payload.register
def _(value: MigDataRead) -> Row:
    return _fields({"argsz": value.argsz, "migration.size": value.size})


@_payload.register(MigDataReadReply)
@_payload.register(MigDataWrite)
def _(value: MigDataReadReply | MigDataWrite) -> Row:
    size = len(value.data)
    return _fields({"argsz": 8 + size, "migration.size": size, "migration.data": value.data})


def _feature(value: DeviceFeature, *, reply: bool) -> Row:
    numbers = _fields(
        {
            "argsz": value.argsz,
            "feature.index": value.feature,
            "feature.flags": value.feature | value.flags,
        }
    )
    operations: Row = {
        f"vfio_user.feature.flags.{bit.name}".lower(): [bit in value.flags] for bit in FeatureFlags
    }
    data = feature_data(value, reply=reply)
    shown = _fields({"feature.data": value.data}) if data is None else _feature_data(data)
    return _join(numbers, operations, shown)


def _feature_data(data: FeatureData) -> Row:
    match data:
        case MigrationSupport(flags):
            return _flags("migration.flags", flags)
        case MigrationState(state, data_fd):
            return _fields({"migration.state": int(state), "migration.data_fd": data_fd})
        case DmaLoggingControl(page_size, ranges):
            start = {"dma_logging.page_size": page_size, "dma_logging.num_ranges": len(ranges)}
            shown = [
                _fields({"dma_logging.iova": part.iova, "dma_logging.length": part.length}) for part in ranges
            ]
            return _join(_fields({**start}), *shown)
        case DmaLoggingReport(iova, length, page_size, bitmap):
            numbers = {"dma_logging.iova": iova, "dma_logging.length": length}
            numbers["dma_logging.page_size"] = page_size
            return _fields({**numbers, "dma_logging.bitmap": bitmap})
