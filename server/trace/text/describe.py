"""Requests and replies in words, one function per kind of value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol import (
    Acknowledgement,
    Capabilities,
    DeviceFeature,
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
    ErrorReply,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqInfo,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    Reply,
    Request,
    SetIrqs,
    Version,
)
from server.trace.fd_facts import FdFacts
from server.trace.text.describe_device import feature, io_fds, region_info, set_irqs
from server.trace.text.names import Names
from server.trace.text.value_text import (
    SHORT,
    data_text,
    fd_text,
    flags_text,
    permissions,
    plural,
    size_text,
    some,
    span,
)

MAX_WRITES = 4
"""Writes of a REGION_WRITE_MULTI that are shown."""

Fds = tuple[FdFacts, ...]
Describe = Callable[[Any, Names, Fds], str]


def describe(value: Request | Reply | ErrorReply, names: Names, fds: Fds = ()) -> str:
    """What ``value`` says, beside its command; empty where that is all. ``fds`` are those that came with it."""
    return _DESCRIBE[type(value)](value, names, fds)


def place(region: int, offset: int, count: int, names: Names) -> str:
    """``BAR4 common.queue_select``; with the offset where no register is there, or more than one may be."""
    register = names.register(region, offset) if count <= SHORT else None
    return f"{names.region(region)} {register or f'+{offset:#x}'}"


def says_fds(value: Request | Reply | ErrorReply | None) -> bool:
    """Whether the words for ``value`` say which file descriptors came along."""
    return isinstance(value, DmaMap | SetIrqs)


def _nothing(_value: object, _names: Names, _fds: Fds) -> str:
    return ""


def _version(value: Version, _names: Names, _fds: Fds) -> str:
    stated = [] if value.capabilities is None else _capabilities(value.capabilities)
    return " ".join((f"{value.major}.{value.minor}", *stated))


def _capabilities(value: Capabilities) -> list[str]:
    numbers = {
        "max_msg_fds": value.max_msg_fds,
        "max_data_xfer_size": value.max_data_xfer_size,
        "max_dma_maps": value.max_dma_maps,
        "pgsizes": value.pgsizes,
        "write_multiple": value.write_multiple,
    }
    stated = [f"{name}={number}" for name, number in numbers.items() if number is not None]
    if (twin := value.twin_socket) is not None:
        index = "" if twin.fd_index is None else f",fd_index:{twin.fd_index}"
        stated.append(f"twin_socket={twin.supported}{index}")
    if (migration := value.migration) is not None:
        sizes = {"pgsize": migration.pgsize, "max_bitmap_size": migration.max_bitmap_size}
        known = [f"{name}:{size}" for name, size in sizes.items() if size is not None]
        stated.append(f"migration={','.join(known) or 'yes'}")
    if value.unknown:
        stated.append("unknown=" + some(value.unknown, len(value.unknown), MAX_WRITES, ","))
    return stated


def _dma_map(value: DmaMap, _names: Names, fds: Fds) -> str:
    text = f"{span(value.address, value.size)} {permissions(value.flags)}"
    if value.flags & DmaMapFlags.MAPPABLE:
        text += " mappable"
    if not fds:
        return f"{text} without a file"
    return f"{text} from +{value.offset:#x} of {', '.join(map(fd_text, fds))}"


def _dma_unmap(value: DmaUnmap, _names: Names, _fds: Fds) -> str:
    if value.flags & DmaUnmapFlags.ALL:
        return "everything"
    text = span(value.address, value.size)
    if value.bitmap is not None:
        text += f", asks for dirty pages of {size_text(value.bitmap.page_size)}"
    return text


def _dma_unmapped(value: DmaUnmapReply, _names: Names, _fds: Fds) -> str:
    if value.flags & DmaUnmapFlags.ALL:
        return "everything"
    text = span(value.address, value.size)
    if value.flags & DmaUnmapFlags.GET_DIRTY_BITMAP:
        text += f", dirty pages of {size_text(value.page_size)}: {data_text(value.bitmap)}"
    return text


def _dma_read(value: DmaRead, _names: Names, _fds: Fds) -> str:
    return span(value.address, value.count)


def _dma_data(value: DmaReadReply | DmaWrite, _names: Names, _fds: Fds) -> str:
    return f"{value.address:#x} {data_text(value.data)}"


def _dma_written(value: DmaWriteReply, _names: Names, _fds: Fds) -> str:
    return "" if value.address is None or value.count is None else span(value.address, value.count)


def _device_info(value: DeviceInfo, _names: Names, _fds: Fds) -> str:
    regions, irqs = plural(value.num_regions, "region"), plural(value.num_irqs, "irq")
    return f"{flags_text(value.flags)} {regions}, {irqs}"


def _region(value: GetRegionInfo | GetRegionIoFds, names: Names, _fds: Fds) -> str:
    return names.region(value.index)


def _irq(value: GetIrqInfo, names: Names, _fds: Fds) -> str:
    return names.irq(value.index)


def _irq_info(value: IrqInfo, names: Names, _fds: Fds) -> str:
    return f"{names.irq(value.index)} {plural(value.count, 'vector')} {flags_text(value.flags)}"


def _region_count(value: RegionRead | RegionWriteReply, names: Names, _fds: Fds) -> str:
    return f"{place(value.region, value.offset, value.count, names)} ({size_text(value.count)})"


def _region_data(value: RegionReadReply | RegionWrite, names: Names, _fds: Fds) -> str:
    return f"{place(value.region, value.offset, len(value.data), names)} {data_text(value.data)}"


def _region_writes(value: RegionWriteMulti, names: Names, fds: Fds) -> str:
    writes = value.writes
    texts = (_region_data(write, names, fds) for write in writes)
    return f"{plural(len(writes), 'write')}: {some(texts, len(writes), MAX_WRITES, '; ')}"


def _writes_done(value: RegionWriteMultiReply, _names: Names, _fds: Fds) -> str:
    return plural(value.count, "write")


def _mig_read(value: MigDataRead, _names: Names, _fds: Fds) -> str:
    return f"up to {size_text(value.size)}"


def _mig_data(value: MigDataReadReply | MigDataWrite, _names: Names, _fds: Fds) -> str:
    return data_text(value.data)


_DESCRIBE: dict[type, Describe] = {
    Version: _version,
    DmaMap: _dma_map,
    DmaUnmap: _dma_unmap,
    DmaUnmapReply: _dma_unmapped,
    DmaRead: _dma_read,
    DmaReadReply: _dma_data,
    DmaWrite: _dma_data,
    DmaWriteReply: _dma_written,
    GetInfo: _nothing,
    DeviceInfo: _device_info,
    GetRegionInfo: _region,
    RegionInfo: region_info,
    GetRegionIoFds: _region,
    RegionIoFds: io_fds,
    GetIrqInfo: _irq,
    IrqInfo: _irq_info,
    SetIrqs: set_irqs,
    RegionRead: _region_count,
    RegionReadReply: _region_data,
    RegionWrite: _region_data,
    RegionWriteReply: _region_count,
    RegionWriteMulti: _region_writes,
    RegionWriteMultiReply: _writes_done,
    DeviceReset: _nothing,
    DeviceFeature: feature,
    MigDataRead: _mig_read,
    MigDataReadReply: _mig_data,
    MigDataWrite: _mig_data,
    Acknowledgement: _nothing,
    ErrorReply: _nothing,
}
