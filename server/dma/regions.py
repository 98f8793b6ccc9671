"""The DMA regions that a client has mapped, by IOVA (the device's view of guest memory).

Rules and errors follow VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA of type1 v2 (linux/vfio.h) and the
vfio-user specification, VFIO_USER_DMA_MAP and VFIO_USER_DMA_UNMAP.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from devices.contract import GuestMemoryError, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile
from server.dma.errors import DmaError
from server.dma.sorted_map import SortedMap

MAX_REGIONS = 65_535
"""QEMU's limit of max_dma_maps."""

ADDRESS_SPACE_SIZE = 1 << 64

_LOOKUP_CACHE_SIZE = 8192


class DmaRegion:
    """``size`` bytes of guest memory at ``iova``, found at ``offset`` in ``backing``, or nowhere (None).

    ``allows[prot]`` says whether an access is permitted. Adding ``delta`` to an address gives its offset in
    the file. ``generation`` grows with every region: one that comes back at the same IOVA has another.
    """

    __slots__ = ("allows", "backing", "delta", "end", "generation", "iova", "offset", "prot", "size")

    def __init__(
        self, iova: int, size: int, prot: Prot, backing: BackingFile | None, offset: int, generation: int
    ) -> None:
        self.iova = iova
        self.size = size
        self.end = iova + size
        self.prot = prot
        self.backing = backing
        self.offset = offset
        self.delta = offset - iova
        self.generation = generation
        bits = prot.value
        self.allows = (True, bits & 1 != 0, bits & 2 != 0, bits == 3)

    def __repr__(self) -> str:
        shared = "shared" if self.backing else "by message"
        return f"<DmaRegion {self.iova:#x}+{self.size:#x} {self.prot!r} {shared} #{self.generation}>"


class RegionPart(NamedTuple):
    """The addresses ``[start, end)`` of ``region``."""

    region: DmaRegion
    start: int
    end: int


class DmaRegionTable:
    """Up to ``max_regions`` disjoint regions; every operation costs O(log n), or O(1) where it repeats."""

    def __init__(self, max_regions: int = MAX_REGIONS) -> None:
        self.max_regions = max_regions
        self.mapped_bytes = 0
        self._regions: SortedMap[DmaRegion] = SortedMap()
        self._by_page: dict[int, DmaRegion] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def check_map(self, iova: int, size: int, prot: int, offset: int) -> None:
        """Raise DmaError unless a region of this shape may be added.

        EINVAL: empty, unaligned, wrapping or without a permission. EEXIST: overlaps a region, even where it
        is identical. ENOSPC: as many regions as there may be.
        """
        _check_shape(iova, size)
        if offset < 0 or offset % PAGE_SIZE:
            raise DmaError(errno.EINVAL, f"a DMA map at offset {offset:#x} of its file, where no page starts")
        if not 0 < prot <= Prot.READ | Prot.WRITE:
            raise DmaError(errno.EINVAL, f"a DMA map with permissions {int(prot):#x}")
        if self._last_before(iova + size, above=iova) is not None:
            raise DmaError(errno.EEXIST, f"{iova:#x}+{size:#x} overlaps memory that is mapped already")
        if len(self._regions) >= self.max_regions:
            raise DmaError(errno.ENOSPC, f"more than {self.max_regions} DMA regions")

    def add(self, region: DmaRegion) -> None:
        """Add a region that :meth:`check_map` has passed."""
        self._regions[region.iova] = region
        self.mapped_bytes += region.size

    def remove(self, iova: int, size: int) -> list[DmaRegion]:
        """Take out every region within the range.

        Raises DmaError with nothing changed. EINVAL: bad shape, or the range would bisect a region. ENOENT:
        no region in it.
        """
        _check_shape(iova, size)
        end = iova + size
        last = self._last_before(end, above=iova)
        if last is None:
            raise DmaError(errno.ENOENT, f"{iova:#x}+{size:#x} is not mapped")
        cut = None if self._regions.get(iova) else self._last_before(iova, above=iova)
        if last.end > end or cut is not None:
            raise DmaError(errno.EINVAL, f"unmapping {iova:#x}+{size:#x} would cut a DMA region in two")
        removed = [last] if last.iova == iova else self._regions.between(iova, end)
        for region in removed:
            self._regions.pop(region.iova)
        self._forget(removed)
        return removed

    def remove_all(self) -> list[DmaRegion]:
        """Take out every region, in order of IOVA."""
        removed = list(self._regions.values())
        self._regions.clear()
        self._forget(removed)
        return removed

    def find(self, address: int) -> DmaRegion | None:
        """The region that ``address`` is in."""
        region = self._by_page.get(address // PAGE_SIZE)
        if region is None:
            region = self._last_before(address + 1, above=address)
            if region is not None:
                if len(self._by_page) >= _LOOKUP_CACHE_SIZE:
                    self._by_page.clear()
                self._by_page[address // PAGE_SIZE] = region
        return region

    def parts(self, start: int, end: int, prot: int) -> list[RegionPart]:
        """The regions that make up ``[start, end)``, in order.

        Raises GuestMemoryError. EINVAL: there is a hole. EPERM: a region does not permit ``prot``.
        """
        parts: list[RegionPart] = []
        while start < end:
            region = self.find(start)
            if region is None:
                raise GuestMemoryError(errno.EINVAL, f"guest address {start:#x} is not mapped")
            if not region.allows[prot]:
                raise GuestMemoryError(errno.EPERM, f"guest address {start:#x} is mapped {region.prot!r}")
            stop = min(end, region.end)
            parts.append(RegionPart(region, start, stop))
            start = stop
        return parts

    def _last_before(self, end: int, *, above: int) -> DmaRegion | None:
        """The last region that starts before ``end`` and reaches beyond ``above``."""
        region = self._regions.floor(end - 1)
        return region if region is not None and region.end > above else None

    def _forget(self, removed: list[DmaRegion]) -> None:
        self._by_page.clear()
        self.mapped_bytes -= sum(region.size for region in removed)


def _check_shape(iova: int, size: int) -> None:
    if size <= 0 or iova < 0 or (iova | size) % PAGE_SIZE:
        raise DmaError(errno.EINVAL, f"{iova:#x}+{size:#x} is not a range of pages")
    if iova + size > ADDRESS_SPACE_SIZE:
        raise DmaError(errno.EINVAL, f"{iova:#x}+{size:#x} wraps")
