"""The guest memory of one client: the server's implementation of :class:`devices.contract.GuestMemory`."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from devices import work
from devices.contract import GuestMemoryError, GuestRange, Log, OnUnmap, Prot
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.dirty import DirtyLog
from server.dma.domain import DmaDomain
from server.dma.errors import DmaError
from server.dma.limits import NO_LIMITS, PinLimits
from server.dma.mapped_pages import PinnedRun
from server.dma.pin import Pin
from server.dma.pins import PinCache
from server.dma.regions import ADDRESS_SPACE_SIZE, MAX_REGIONS, DmaRegion, DmaRegionTable
from server.dma.unmapping import Unmapping

DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20
"""Bytes per DMA_READ or DMA_WRITE where the client does not say otherwise (vfio-user, VFIO_USER_VERSION)."""

_PAGES = ADDRESS_SPACE_SIZE >> PAGE_SHIFT
_READ = Prot.READ.value
_WRITE = Prot.WRITE.value


class GuestMemoryMap:
    """What a client maps and unmaps, and what devices read, write, view and pin.

    :meth:`map`, :meth:`unmap` and :meth:`unmap_all` serve the client and raise DmaError; the methods of
    GuestMemory serve devices and raise GuestMemoryError. ``domain`` may outlive this object; :meth:`close`
    takes everything out of it again. ``max_data_xfer_size`` may be set once it has been negotiated.
    """

    observed = False
    """Nothing is recorded; see :class:`server.trace.observed_memory.ObservedMemory`."""

    def __init__(
        self,
        log: Log,
        domain: DmaDomain,
        *,
        limits: PinLimits = NO_LIMITS,
        max_regions: int = MAX_REGIONS,
        max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER_SIZE,
    ) -> None:
        """Begin with nothing mapped."""
        self.max_data_xfer_size = max_data_xfer_size
        self.messages = 0
        self._log = log
        self._domain = domain
        self._regions = DmaRegionTable(max_regions)
        self._find = self._regions.find
        self._files = BackingFiles(self._report_unsealed)
        self.dirty = DirtyLog(self._report_overflow)
        self._pins = PinCache(self._regions, domain, log, self.dirty, limits)
        self._unmapping: Unmapping | None = None
        self._writes_under_way: list[tuple[int, int]] = []
        self._generation = 0
        self._closed = False

    def map(self, iova: int, size: int, prot: Prot, fd: int | None = None, offset: int = 0) -> DmaRegion:
        """Add a region; ``fd`` belongs to this object from now on, even where this fails.

        Raises DmaError: EINVAL (unaligned, empty, wrapping, permissionless, or an fd that cannot back it),
        EEXIST (overlap), ENOSPC (limit), EACCES or EPERM (the fd does not give the access), ENODEV (closed).
        """
        try:
            if self._closed:
                raise DmaError(errno.ENODEV, "the client is gone")
            if self._unmapping is not None:
                self._unmapping.finish()  # or a page that comes back could be the old one
            self._regions.check_map(iova, size, prot, offset)
        except DmaError:
            if fd is not None:
                os.close(fd)
            raise
        backing = None
        if fd is not None:
            backing = self._files.acquire(fd, offset, size, writable=bool(prot & _WRITE))
        self._generation += 1
        region = DmaRegion(iova, size, Prot(prot), backing, offset, self._generation)
        self._regions.add(region)
        return region

    def unmap(self, iova: int, size: int) -> int:
        """Remove the regions within a range at once; returns their bytes together.

        When this returns, nothing refers to the memory: holders of pins have been told, and what they did
        not release is revoked. Raises DmaError with nothing changed: EINVAL (bad shape, or it would cut a
        region in two), ENOENT (nothing there).
        """
        return self.begin_unmap(iova, size, may_wait=False).finish()

    def begin_unmap(self, iova: int, size: int, *, may_wait: bool = True) -> Unmapping:
        """As :meth:`unmap`, but holders may ask for time: whoever called this finishes it."""
        removed = self._regions.remove(iova, size)
        return self._begin(removed, iova >> PAGE_SHIFT, iova + size >> PAGE_SHIFT, may_wait=may_wait)

    def unmap_all(self) -> int:
        """Remove all regions at once; returns their bytes together, 0 where there are none."""
        return self.begin_unmap_all(may_wait=False).finish()

    def begin_unmap_all(self, *, may_wait: bool = True) -> Unmapping:
        """As :meth:`unmap_all`, but holders may ask for time: whoever called this finishes it."""
        return self._begin(self._regions.remove_all(), 0, _PAGES, may_wait=may_wait)

    def reset(self) -> None:
        """The device was reset: what it still holds is revoked, and nothing is retained. The regions stay."""
        self._pins.invalidate(0, _PAGES)

    def close(self) -> None:
        """The client is gone: give back every fd, mapping and pin. Calling it again does nothing."""
        if not self._closed:
            if self._unmapping is not None:
                self._unmapping.finish()
            self.unmap_all()
            self._closed = True

    def view(self, address: int, length: int, prot: Prot) -> memoryview | None:
        """Shared guest memory in place; see :meth:`devices.contract.GuestMemory.view`."""
        region = self._find(address)
        if region is None or length < 0 or address + length > region.end:
            self._check(address, length, prot)
            return None
        if not region.allows[prot]:
            raise GuestMemoryError(errno.EPERM, f"guest address {address:#x} is mapped {region.prot!r}")
        backing = region.backing
        if backing is None:
            return None
        if self.dirty.active and prot & _WRITE:
            # A view is used at once, so what is written through it is written before the next report.
            self.dirty.mark(address, address + length)
        start = address + region.delta
        return backing.memory[prot][start : start + length]

    @property
    def pinned_runs(self) -> Sequence[PinnedRun]:
        """The runs of pages in the domain by guest address, for status and tests."""
        return self._pins.runs

    async def read(self, address: int, length: int) -> bytes:
        """Copy out of the guest, by message where the client did not share the memory.

        Raises GuestMemoryError. All of the range is checked before the first byte is read.
        """
        region = self._find(address)
        if region is not None and 0 <= length <= region.end - address and region.allows[_READ]:
            backing = region.backing
            if backing is not None:
                start = address + region.delta
                return bytes(backing.memory[_READ][start : start + length])
        return await self._read_parts(address, length)

    async def write(self, address: int, data: bytes | memoryview) -> None:
        """Copy into the guest, by message where the client did not share the memory.

        Raises GuestMemoryError. All of the range is checked before the first byte is written.
        """
        region = self._find(address)
        length = len(data)
        if region is not None and address + length <= region.end and region.allows[_WRITE]:
            backing = region.backing
            if backing is not None:
                if self.dirty.active:
                    self.dirty.mark(address, address + length)
                start = address + region.delta
                backing.memory[_WRITE][start : start + length] = data
                return
        await self._write_parts(address, data)

    def pin_pages(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap) -> Pin:
        """Pin a scatter list; see :meth:`server.dma.pins.PinCache.pin`."""
        if self._closed:
            raise GuestMemoryError(errno.ENODEV, "the client is gone")
        return self._pins.pin(ranges, prot, on_unmap)

    def dirty_bitmap(self, iova: int, length: int, page_size: int) -> bytes:
        """What the device wrote of a range since the last time; see :meth:`DirtyLog.report`."""
        for start, behind in self._writes_under_way:
            self.dirty.mark(start, behind)
        end = min(iova + length + PAGE_SIZE - 1, ADDRESS_SPACE_SIZE)
        return self.dirty.report(
            iova, length, page_size, self._pins.written_spans(iova >> PAGE_SHIFT, end >> PAGE_SHIFT)
        )

    def stats(self) -> dict[str, object]:
        """Counters for ``vgpud status``: JSON values; sizes in bytes, hits and misses in pages."""
        return {
            "domain": self._domain.name,
            "domain_details": self._domain.stats(),
            "regions": len(self._regions),
            "mapped_bytes": self._regions.mapped_bytes,
            "files": len(self._files),
            **self._pins.stats(),
            "messages": self.messages,
        }

    async def _read_parts(self, address: int, length: int) -> bytes:
        self._check(address, length, _READ)
        pieces: list[bytes | memoryview] = []
        while length > 0:
            # Looked up again for each part: the map may have changed while a message was under way.
            region, size = self._part(address, length, _READ)
            if region.backing is not None:
                pieces.append(self._read_shared(region, address, size))
            else:
                pieces.append(await self._read_message(address, size))
            address += size
            length -= size
        return b"".join(pieces)

    def _read_shared(self, region: DmaRegion, address: int, size: int) -> bytes | memoryview:
        """What is in shared memory, within one region."""
        assert region.backing is not None  # noqa: S101 - that is what shared means
        start = address + region.delta
        return region.backing.memory[_READ][start : start + size]

    def _write_shared(self, region: DmaRegion, address: int, data: memoryview) -> None:
        """Write to shared memory, within one region."""
        assert region.backing is not None  # noqa: S101 - that is what shared means
        self.dirty.mark(address, address + len(data))
        start = address + region.delta
        region.backing.memory[_WRITE][start : start + len(data)] = data

    async def _read_message(self, address: int, size: int) -> bytes:
        self.messages += 1
        data = await work.read_message(address, size)
        if len(data) != size:
            raise GuestMemoryError(errno.EINVAL, f"the client answered {size} bytes with {len(data)}")
        return data

    async def _write_parts(self, address: int, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self._check(address, len(rest), _WRITE)
        while rest:
            region, size = self._part(address, len(rest), _WRITE)
            if region.backing is not None:
                self._write_shared(region, address, rest[:size])
            else:
                await self._write_message(address, bytes(rest[:size]))
            address += size
            rest = rest[size:]

    async def _write_message(self, address: int, data: bytes) -> None:
        self.messages += 1
        # The client may write at any moment until its answer is seen to here, and in part where it refuses.
        part = (address, address + len(data))
        self._writes_under_way.append(part)
        try:
            await work.write_message(address, data)
        finally:
            self._writes_under_way.remove(part)
            self.dirty.mark(*part)

    def _part(self, address: int, length: int, prot: int) -> tuple[DmaRegion, int]:
        """The region at ``address``, and how many of ``length`` bytes to move there at once."""
        region = self._regions.parts(address, address + 1, prot)[0].region
        size = min(length, region.end - address)
        return region, size if region.backing is not None else min(size, self.max_data_xfer_size)

    def _check(self, address: int, length: int, prot: int) -> None:
        """Raise GuestMemoryError unless all of the range is mapped for ``prot``."""
        if self._closed:
            raise GuestMemoryError(errno.ENODEV, "the client is gone")
        if address < 0 or length < 0:
            raise GuestMemoryError(errno.EINVAL, f"{length} bytes at guest address {address:#x}")
        if address + length > ADDRESS_SPACE_SIZE:
            raise GuestMemoryError(errno.EOVERFLOW, f"{address:#x}+{length:#x} wraps")
        self._regions.parts(address, address + length, prot)

    def _begin(self, removed: Sequence[DmaRegion], start: int, end: int, *, may_wait: bool) -> Unmapping:
        if self._unmapping is not None:
            self._unmapping.finish()
        invalidation = self._pins.invalidate(start, end, may_wait=may_wait)
        self._unmapping = Unmapping(self._pins, invalidation, removed, self._let_go)
        return self._unmapping

    def _let_go(self, removed: Sequence[DmaRegion]) -> None:
        self._unmapping = None
        for region in removed:
            if region.backing is not None:
                self._files.release(region.backing)

    def _report_overflow(self) -> None:
        self._log.warning("dirty_log_overflow", effect="all memory is reported as written")

    def _report_unsealed(self, backing: BackingFile) -> None:
        self._log.warning("dma_fd_unsealed", device=backing.key[0], inode=backing.key[1], bytes=backing.size)
