"""A client attached to a device: where the transports meet, and where exceptions become errnos.

The session checks what every access must obey (index, bounds, direction), owns the client's memory, interrupts and
deferred work, and gives all of it back in :meth:`Session.close`. It knows neither sockets nor message framing.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass

from devices.contract import Device, GuestMemoryError, Log, MmapArea, Prot, Region, RegionAccess, Work
from protocol import DeviceFeature, DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags, ProtocolError, SetIrqs
from server.dma.memory import DEFAULT_MAX_DATA_XFER_SIZE, GuestMemoryMap
from server.dma.unmapping import Unmapping
from server.dma_logging import serve_feature
from server.fds import ReceivedFds
from server.interrupts import Interrupts
from server.work_queue import WorkQueue

WORK_SLICE_NS = 1_000_000
"""Longest time that deferred work runs before the transport looks at its socket again."""
SHARE_MEMORY = "give QEMU -object memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m"
"""The advice to who runs a guest whose memory is private: it works, but every access is a message."""

_READ_WRITE = DmaMapFlags.READ.value | DmaMapFlags.WRITE.value
_PROTS = tuple(Prot(bits) for bits in range(_READ_WRITE + 1))
"""By the bits of the message: looking a flag up costs a tenth of combining two."""


@dataclass(slots=True)
class Counters:
    """What a session has done so far."""

    region_reads: int = 0
    region_writes: int = 0
    dma_maps: int = 0
    dma_unmaps: int = 0
    resets: int = 0
    errors: int = 0


def errno_of(error: BaseException) -> int | None:
    """The errno that a client is told for ``error``; None where it is a fault of ours."""
    if isinstance(error, (ProtocolError, GuestMemoryError, OSError)) and error.errno is not None:
        return int(error.errno)
    return None


class DmaUnmapping:
    """A DMA_UNMAP between the moment that holders of its memory were told, and its reply."""

    def __init__(self, memory: GuestMemoryMap, request: DmaUnmap, unmapping: Unmapping) -> None:
        self.request = request
        self._memory = memory
        self._unmapping = unmapping

    @property
    def pending(self) -> bool:
        """Whether a device that asked for time still uses the memory."""
        return self._unmapping.pending

    def when_released(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when it no longer does."""
        self._unmapping.when_released(call)

    def finish(self) -> bytes:
        """Nothing of ours refers to the memory when this returns; what was written to it, where that was asked."""
        self._unmapping.finish()
        wanted = self.request.bitmap
        if wanted is None:
            return b""
        return self._memory.dirty_bitmap(self.request.address, self.request.size, wanted.page_size)


class Session:
    """One client on one device; what :class:`devices.contract.Host` asks for, and more."""

    def __init__(
        self,
        device: Device,
        memory: GuestMemoryMap,
        work: WorkQueue,
        log: Log,
        max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER_SIZE,
    ) -> None:
        """Attach a client to ``device``. The session owns ``memory`` and ``work`` from here on.

        ``max_data_xfer_size``: bytes of data that one reply may have.
        """
        self.max_data_xfer_size = max_data_xfer_size
        self.device = device
        self.memory = memory
        self.work = work
        self.log = log
        self.interrupts = Interrupts(device.irqs)
        self.trigger = self.interrupts.trigger
        self.counters = Counters()
        self.clock = time.monotonic_ns
        self.wake: Callable[[], None] = _nobody_to_wake
        """Makes the transport, which sets this, run work that was deferred outside of an access."""
        self._regions = tuple(device.regions)
        self._own_areas = {
            area.length
            for region in self._regions
            if region.shared is not None
            for area in region.mmap_areas or (MmapArea(0, region.size),)
        }
        """Sizes of what a client may map of the device."""
        self._largest_shared = 0
        self._warned_of_unshared_memory = False
        try:
            device.connect(self)
        except BaseException:
            self.close()
            raise

    def defer(self, work: Work) -> None:
        """Queue a device's work; the transport runs it after it has answered the access at hand."""
        self.work.defer(work)

    def offer(self, work: Work) -> bool:
        """Queue work that is nothing of the device's; False, and it is dropped, where too much waits already."""
        return self.work.offer(work)

    def withdraw(self, work: Work) -> None:
        """Forget deferred work that nobody waits for any more, unless it has begun."""
        self.work.withdraw(work)

    def region(self, index: int) -> Region:
        """The region ``index``; EINVAL where there is none."""
        if index >= len(self._regions):
            raise ProtocolError(errno.EINVAL, f"there is no region {index}")
        return self._regions[index]

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Read a region. EINVAL out of bounds, EPERM where the region is not readable, EIO if the device fails."""
        if index >= len(self._regions):
            raise ProtocolError(errno.EINVAL, f"there is no region {index}")
        region = self._regions[index]
        if offset + count > region.size:
            raise _out_of_region(region, offset, count)
        if not region.access & RegionAccess.READ:
            raise ProtocolError(errno.EPERM, f"{region.name} cannot be read")
        self.counters.region_reads += 1
        data = self.device.region_read(index, offset, count)
        if len(data) != count:
            raise RuntimeError(f"the device read {len(data)} bytes of {region.name} instead of {count}")
        return data

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        """Write a region; errors as for :meth:`region_read`."""
        if index >= len(self._regions):
            raise ProtocolError(errno.EINVAL, f"there is no region {index}")
        region = self._regions[index]
        if offset + len(data) > region.size:
            raise _out_of_region(region, offset, len(data))
        if not region.access & RegionAccess.WRITE:
            raise ProtocolError(errno.EPERM, f"{region.name} cannot be written")
        self.counters.region_writes += 1
        self.device.region_write(index, offset, data)

    def dma_map(self, request: DmaMap, fds: ReceivedFds) -> None:
        """Add a DMA region, backed by the one fd that came with the request, or reachable by message only."""
        if len(fds) > 1:
            raise ProtocolError(errno.EINVAL, f"DMA_MAP takes one fd, not {len(fds)}")
        prot = _PROTS[request.flags.value & _READ_WRITE]
        fd = fds.take()
        self.memory.map(request.address, request.size, prot, fd, request.offset)
        self.counters.dma_maps += 1
        if fd is not None:
            self._largest_shared = max(self._largest_shared, request.size)
        # So come ROMs, which are read-only, what the client maps of this very device, and the memory of other devices,
        # which have less than the guest.
        elif (
            prot & Prot.WRITE
            and request.size >= self._largest_shared
            and request.size not in self._own_areas
            and not self._warned_of_unshared_memory
        ):
            self._warned_of_unshared_memory = True
            self.log.warning(
                "memory_not_shared", address=hex(request.address), size=request.size, fix=SHARE_MEMORY
            )

    def begin_dma_unmap(self, request: DmaUnmap) -> DmaUnmapping:
        """Remove DMA regions. The transport finishes it: at once, or within UNMAP_SECONDS where it is pending."""
        if request.bitmap is not None:
            if not self.memory.dirty.active:
                raise ProtocolError(errno.EINVAL, "DMA_UNMAP asks for a dirty bitmap, but DMA logging is off")
            if request.bitmap.size > self.max_data_xfer_size:
                raise ProtocolError(
                    errno.EINVAL, f"a dirty bitmap of {request.bitmap.size} bytes, over max_data_xfer_size"
                )
        if request.flags & DmaUnmapFlags.ALL:
            unmapping = self.memory.begin_unmap_all()
        else:
            unmapping = self.memory.begin_unmap(request.address, request.size)
        self.counters.dma_unmaps += 1
        return DmaUnmapping(self.memory, request, unmapping)

    def device_feature(self, request: DeviceFeature) -> DeviceFeature:
        """Get, set or probe a feature."""
        return serve_feature(self.memory, request, self.max_data_xfer_size)

    def set_irqs(self, request: SetIrqs, fds: ReceivedFds) -> None:
        """Set up, mask, unmask or raise interrupts."""
        self.interrupts.set_irqs(request, fds)

    def reset(self) -> None:
        """Reset the device; the client's memory and eventfds stay, nothing of the memory stays pinned.

        DMA logging goes on: the guest's memory outlives the reset, and who logs it wants to know of every write.
        """
        self.counters.resets += 1
        try:
            self.device.reset()
        finally:
            self.memory.reset()

    def failed(self, command: str, error: Exception) -> int:
        """Log why ``command`` failed, and give the errno to answer with."""
        self.counters.errors += 1
        code = errno_of(error)
        if code is None:
            self.log.warning("device_fault", where=command, exc_info=error)
            return errno.EIO
        self.log.info(
            "request_refused", command=command, error=errno.errorcode.get(code, code), reason=_text(error)
        )
        return code

    def status(self) -> dict[str, object]:
        """Counters of this session, for ``vgpud status``."""
        counters = self.counters
        return {
            "region_reads": counters.region_reads,
            "region_writes": counters.region_writes,
            "dma_maps": counters.dma_maps,
            "dma_unmaps": counters.dma_unmaps,
            "resets": counters.resets,
            "errors": counters.errors,
            "interrupts": self.interrupts.raised,
            "memory": self.memory.stats(),
        }

    def close(self) -> None:
        """Give back every pin, mapping, fd and eventfd, whatever a device makes of it."""
        self.work.close()
        try:
            self.device.disconnect()
        except Exception:
            self.log.warning("device_fault", where="disconnect", exc_info=True)
        self.memory.close()
        self.interrupts.close()


def _nobody_to_wake() -> None:
    """No transport sleeps."""


def _out_of_region(region: Region, offset: int, count: int) -> ProtocolError:
    return ProtocolError(
        errno.EINVAL, f"{offset:#x}+{count:#x} is outside of {region.name}, which has {region.size:#x} bytes"
    )


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
