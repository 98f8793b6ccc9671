"""The ``type1`` domain: a hardware IOMMU, through VFIO. Its dma_addrs are for a real device that is assigned."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Final

from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile
from server.dma.domain import DmaDomain, DmaSegment, FileRun
from server.dma.domains.iova import IovaAllocator
from server.dma.domains.vfio import MapFlags, VfioContainer
from server.dma.errors import DmaDomainUnavailable, DmaError
from server.dma.sorted_map import SortedMap

_MAX_IOVA: Final = 1 << 44
"""No address is above it: their page numbers have 32 bits."""


class Type1Domain(DmaDomain):
    """IO virtual addresses in a VFIO container; scattered pages become one contiguous range.

    A run is one mapping of the IOMMU, with the permissions that the client gives, wanted now or not: VFIO cannot
    change those of a mapping that is in use, and taking it away for a moment would make DMA in flight fault. For the
    same reason a mapping goes as a whole, when the last of its pages is unmapped. Until then the device still
    reaches the others, which linger: :meth:`stats` counts them, and a page of them that is mapped again is where it
    was. Nothing lingers beyond its DMA region, because a region's pages are all unmapped before it goes.
    """

    name = "type1"
    locks_memory = True

    def __init__(self, container: VfioContainer, dma_bits: int = 64) -> None:
        """Use ``container``, which outlives this; addresses have ``dma_bits`` bits. Raises DmaDomainUnavailable."""
        self._container = container
        self._iovas = IovaAllocator()
        limit = min(1 << dma_bits, _MAX_IOVA)
        for start, end in container.ranges:
            # Address 0 is no page's: engines take it for "none".
            first, behind = max(start, PAGE_SIZE), min(end, limit) & -PAGE_SIZE
            if first < behind:
                self._iovas.add(first, behind - first)
        if not self._iovas.free_bytes:
            raise DmaDomainUnavailable(f"the IOMMU has no addresses of {dma_bits} bits")
        self._mappings: SortedMap[_Mapping] = SortedMap()
        self._lingering: dict[tuple[BackingFile, int], int] = {}
        self._stuck: list[_Mapping] = []

    @property
    def max_runs(self) -> int:
        """No limit of its own: the kernel counts mappings of all who use the container, and ENOMEM says so."""
        return 1 << 52

    def map_runs(self, runs: Sequence[FileRun], *, writable: bool) -> list[DmaSegment]:  # noqa: ARG002
        """Raises OSError (ENOMEM, EFAULT) with nothing changed."""
        pieces = list(self._pieces(runs))
        fresh = sum(run.length for run, lingering in pieces if lingering is None)
        base = cursor = self._iovas.alloc(fresh) if fresh else 0
        made: list[_Mapping] = []
        segments: list[DmaSegment] = []
        try:
            for run, lingering in pieces:
                if lingering is None:
                    made.append(self._map(run, cursor))
                    cursor += run.length
                _append(segments, made[-1].iova if lingering is None else lingering, run.length)
        except OSError as error:
            for mapping in made:
                self._drop(mapping)
            self._iovas.free(cursor, base + fresh - cursor)
            if error.errno == errno.ENOSPC:
                raise DmaError(errno.ENOMEM, "the IOMMU takes no more mappings (dma_entry_limit)") from error
            raise
        for run, lingering in pieces:
            if lingering is not None:
                del self._lingering[run.backing, run.offset]
                self._at(lingering).live += run.length
        return segments

    def unmap(self, dma_addr: int, length: int) -> None:
        """A mapping of which pages are left lingers with what is unmapped of it."""
        self._retry()
        end = dma_addr + length
        while dma_addr < end:
            mapping = self._at(dma_addr)
            stop = min(end, mapping.iova + mapping.length)
            mapping.live -= stop - dma_addr
            if mapping.live:
                for iova in range(dma_addr, stop, PAGE_SIZE):
                    self._lingering[mapping.file_page(iova)] = iova
            else:
                self._forget(mapping, whole=stop - dma_addr == mapping.length)
            dma_addr = stop

    def make_writable(self, dma_addr: int, length: int) -> None:
        """Whatever the client permits is permitted already. Raises DmaError (EPERM) for a file that is read-only."""
        end = dma_addr + length
        while dma_addr < end:
            mapping = self._at(dma_addr)
            if not mapping.flags & MapFlags.WRITE:
                raise DmaError(errno.EPERM, "the client's file is open for reading only")
            dma_addr = mapping.iova + mapping.length

    def view(self, dma_addr: int, length: int) -> memoryview | None:  # noqa: ARG002 - the interface's
        """None: the CPU sees the memory where the client's file is mapped."""
        return None

    def stats(self) -> dict[str, object]:
        """How many mappings there are, how many the kernel has left, and how many pages linger."""
        return {
            "iommu_mappings": len(self._mappings),
            "iommu_mappings_left": self._container.available,
            "lingering_pages": len(self._lingering),
        }

    def close(self) -> None:
        """Take back what could not be taken back before. The container stays its owner's."""
        self._retry()

    def _pieces(self, runs: Sequence[FileRun]) -> Iterator[tuple[FileRun, int | None]]:
        """The runs, cut where pages linger, and the address of those that do."""
        if not self._lingering:
            yield from ((run, None) for run in runs)
            return
        claimed: set[int] = set()  # a list may name a page twice, by guest addresses that alias it
        for run in runs:
            start, end = run.offset, run.offset + run.length
            for page in range(start, end, PAGE_SIZE):
                iova = self._lingering.get((run.backing, page))
                if iova is None or iova in claimed or self._at(iova).flags != _flags(run):
                    continue
                claimed.add(iova)
                if start < page:
                    yield run._replace(offset=start, length=page - start), None
                yield run._replace(offset=page, length=PAGE_SIZE), iova
                start = page + PAGE_SIZE
            if start < end:
                yield run._replace(offset=start, length=end - start), None

    def _map(self, run: FileRun, iova: int) -> _Mapping:
        mapping = _Mapping(iova, run)
        self._container.map_dma(iova, run.backing.space.address + run.offset, run.length, mapping.flags)
        self._mappings[iova] = mapping
        return mapping

    def _at(self, iova: int) -> _Mapping:
        mapping = self._mappings.floor(iova)
        if mapping is None or iova >= mapping.iova + mapping.length:
            raise KeyError(f"{iova:#x} is not mapped")
        return mapping

    def _forget(self, mapping: _Mapping, *, whole: bool) -> None:
        """The last pages of ``mapping`` are unmapped; ``whole``: they are all that it has."""
        if not whole:
            for iova in range(mapping.iova, mapping.iova + mapping.length, PAGE_SIZE):
                if self._lingering.get(mapping.file_page(iova)) == iova:
                    del self._lingering[mapping.file_page(iova)]
        self._drop(mapping)

    def _drop(self, mapping: _Mapping) -> None:
        self._mappings.pop(mapping.iova)
        self._give_back(mapping)

    def _retry(self) -> None:
        stuck, self._stuck = self._stuck, []
        for mapping in stuck:
            self._give_back(mapping)

    def _give_back(self, mapping: _Mapping) -> None:
        try:
            self._container.unmap_dma(mapping.iova, mapping.length)
        except OSError:
            self._stuck.append(mapping)  # its addresses stay out of use, and it is tried again
        else:
            self._iovas.free(mapping.iova, mapping.length)


class _Mapping:
    """A mapping of the IOMMU; ``live`` bytes of it are in use."""

    __slots__ = ("flags", "iova", "length", "live", "run")

    def __init__(self, iova: int, run: FileRun) -> None:
        self.iova = iova
        self.run = run
        self.length = run.length
        self.live = run.length
        self.flags = _flags(run)

    def file_page(self, iova: int) -> tuple[BackingFile, int]:
        """Which page of which file is at ``iova``."""
        return self.run.backing, self.run.offset + iova - self.iova


def _flags(run: FileRun) -> MapFlags:
    if run.may_write and run.backing.writable:
        return MapFlags.READ | MapFlags.WRITE
    return MapFlags.READ


def _append(segments: list[DmaSegment], dma_addr: int, length: int) -> None:
    if segments and segments[-1].dma_addr + segments[-1].length == dma_addr:
        segments[-1] = DmaSegment(segments[-1].dma_addr, segments[-1].length + length)
    else:
        segments.append(DmaSegment(dma_addr, length))
