"""One function per vfio-user command: payload and fds in, the reply's payload and fds out.

Register accesses come here only when they are unusual; :mod:`server.native.connection` serves the others itself.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devices.contract import Irq, Region, RegionAccess
from protocol import (
    Command,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    DeviceReset,
    DmaMap,
    DmaUnmap,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqFlags,
    IrqInfo,
    MigDataRead,
    MigDataWrite,
    ProtocolError,
    RegionFlags,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    SparseArea,
    SparseMmap,
)
from server.fds import ReceivedFds
from server.session import DmaUnmapping, Session

MAX_DATA_XFER_SIZE = 1 << 20
"""Bytes of data in one message that this server takes, and gives."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer with. The fds stay their owner's."""

    payload: bytes = b""
    fds: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Later:
    """There is no answer yet: :meth:`reply` gives it, once ``unmapping`` is no longer pending or takes too long."""

    unmapping: DmaUnmapping

    def reply(self) -> Reply:
        """Raises what a handler raises."""
        return Reply(self.unmapping.request.reply(self.unmapping.finish()).pack())


@dataclass(frozen=True, slots=True)
class Handler:
    """Serves one command; raises ProtocolError or OSError for what the client is told."""

    serve: Callable[[Session, memoryview, ReceivedFds], Reply | Later]
    takes_fds: bool = False


EMPTY = Reply()


def _dma_map(session: Session, payload: memoryview, fds: ReceivedFds) -> Reply:
    session.dma_map(DmaMap.unpack(payload), fds)
    return EMPTY


def _dma_unmap(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply | Later:
    later = Later(session.begin_dma_unmap(DmaUnmap.unpack(payload)))
    return later if later.unmapping.pending else later.reply()


def _get_info(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    GetInfo.unpack(payload)
    device = session.device
    flags = DeviceFlags.PCI | DeviceFlags.RESET
    return Reply(DeviceInfo(flags, len(device.regions), len(device.irqs)).pack())


def _get_region_info(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    request = GetRegionInfo.unpack(payload)
    region = session.region(request.index)
    info = _region_info(request.index, region)
    packed = info.pack(request.argsz)
    fds = () if region.shared is None else (region.shared.fd,)
    return Reply(packed, fds)


def _region_info(index: int, region: Region) -> RegionInfo:
    flags = RegionFlags.NONE
    if region.access & RegionAccess.READ:
        flags |= RegionFlags.READ
    if region.access & RegionAccess.WRITE:
        flags |= RegionFlags.WRITE
    if region.shared is None:
        return RegionInfo(index, flags, region.size)
    areas = tuple(SparseArea(area.offset, area.length) for area in region.mmap_areas)
    return RegionInfo(
        index,
        flags | RegionFlags.MMAP,
        region.size,
        region.shared.offset,
        (SparseMmap(areas),) if areas else (),
    )


def _get_region_io_fds(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    request = GetRegionIoFds.unpack(payload)
    session.region(request.index)
    return Reply(RegionIoFds(request.index).pack(request.argsz))


def _get_irq_info(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    request = GetIrqInfo.unpack(payload)
    irqs = session.device.irqs
    if request.index >= len(irqs):
        raise ProtocolError(errno.EINVAL, f"there is no IRQ index {request.index}")
    irq = irqs[request.index]
    return Reply(IrqInfo(request.index, _irq_flags(irq), irq.count).pack())


def _irq_flags(irq: Irq) -> IrqFlags:
    flags = IrqFlags.EVENTFD
    if irq.maskable:
        flags |= IrqFlags.MASKABLE
    if irq.automasked:
        flags |= IrqFlags.AUTOMASKED
    if irq.noresize:
        flags |= IrqFlags.NORESIZE
    return flags


def _set_irqs(session: Session, payload: memoryview, fds: ReceivedFds) -> Reply:
    session.set_irqs(SetIrqs.unpack(payload), fds)
    return EMPTY


def _region_read(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    request = RegionRead.unpack(payload)
    if request.count > MAX_DATA_XFER_SIZE:
        raise ProtocolError(errno.EINVAL, f"a read of {request.count} bytes, over max_data_xfer_size")
    data = session.region_read(request.region, request.offset, request.count)
    return Reply(RegionReadReply(request.offset, request.region, data).pack())


def _region_write(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    request = RegionWrite.unpack(payload)
    if len(request.data) > MAX_DATA_XFER_SIZE:
        raise ProtocolError(errno.EINVAL, f"a write of {len(request.data)} bytes, over max_data_xfer_size")
    session.region_write(request.region, request.offset, memoryview(request.data))
    return Reply(RegionWriteReply(request.offset, request.region, len(request.data)).pack())


def _region_write_multi(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    writes = RegionWriteMulti.unpack(payload).writes
    for write in writes:
        session.region_write(write.region, write.offset, memoryview(write.data))
    return Reply(RegionWriteMultiReply(len(writes)).pack())


def _device_reset(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    DeviceReset.unpack(payload)
    session.reset()
    return EMPTY


def _device_feature(session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    return Reply(session.device_feature(DeviceFeature.unpack(payload)).pack())


def _mig_data_read(_session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    MigDataRead.unpack(payload)
    raise ProtocolError(errno.EINVAL, "no migration is under way")


def _mig_data_write(_session: Session, payload: memoryview, _fds: ReceivedFds) -> Reply:
    MigDataWrite.unpack(payload)
    raise ProtocolError(errno.EINVAL, "no migration is under way")


HANDLERS: dict[int, Handler] = {
    Command.DMA_MAP: Handler(_dma_map, takes_fds=True),
    Command.DMA_UNMAP: Handler(_dma_unmap),
    Command.DEVICE_GET_INFO: Handler(_get_info),
    Command.DEVICE_GET_REGION_INFO: Handler(_get_region_info),
    Command.DEVICE_GET_REGION_IO_FDS: Handler(_get_region_io_fds),
    Command.DEVICE_GET_IRQ_INFO: Handler(_get_irq_info),
    Command.DEVICE_SET_IRQS: Handler(_set_irqs, takes_fds=True),
    Command.REGION_READ: Handler(_region_read),
    Command.REGION_WRITE: Handler(_region_write),
    Command.DEVICE_RESET: Handler(_device_reset),
    Command.REGION_WRITE_MULTI: Handler(_region_write_multi),
    Command.DEVICE_FEATURE: Handler(_device_feature),
    Command.MIG_DATA_READ: Handler(_mig_data_read),
    Command.MIG_DATA_WRITE: Handler(_mig_data_write),
}
