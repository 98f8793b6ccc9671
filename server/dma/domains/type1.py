"""The ``type1`` domain: a hardware IOMMU, through VFIO. Its dma_addrs are for a real device that is assigned."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.domain import DmaDomain, DmaSegment, FileRun, OutOfRuns
from server.dma.domains.iova import IovaAllocator
from server.dma.domains.lingering import FileView, LingeringPages
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

    Who else maps in the container should keep to addresses of more than ``dma_bits`` bits. Addresses that are taken
    all the same are passed over.
    """

    name = "type1"
    locks_memory = True

    def __init__(self, container: VfioContainer, dma_bits: int = 64) -> None:
        """Use ``container``, which outlives this; addresses have ``dma_bits`` bits. Raises DmaDomainUnavailable."""
        if container.page_size > PAGE_SIZE:
            raise DmaDomainUnavailable(
                f"the IOMMU maps {container.page_size} bytes at least, and memory comes in pages of {PAGE_SIZE}"
            )
        self._container = container
        self._iovas = IovaAllocator()
        limit = min(1 << dma_bits, _MAX_IOVA)
        for start, end in container.ranges:
            # Address 0 is no page's: engines take it for "none".
            first, behind = max(start + PAGE_SIZE - 1 & -PAGE_SIZE, PAGE_SIZE), min(end, limit) & -PAGE_SIZE
            if first < behind:
                self._iovas.add(first, behind - first)
        if not self._iovas.free_bytes:
            raise DmaDomainUnavailable(f"the IOMMU has no addresses of {dma_bits} bits")
        self._mappings: SortedMap[_Mapping] = SortedMap()
        self._lingering = LingeringPages()
        self._stuck: list[_Mapping] = []
        self._lingering_bytes = 0

    @property
    def max_runs(self) -> int:
        """No limit of its own: the kernel counts mappings of all who use the container, and OutOfRuns says so."""
        return 1 << 52

    def map_runs(self, runs: Sequence[FileRun], *, writable: bool) -> list[DmaSegment]:  # noqa: ARG002
        """Raises OSError with nothing changed: ENOMEM, OutOfRuns, or EFAULT where the kernel cannot pin the memory."""
        self._retry()
        pieces = list(self._pieces(runs))
        fresh = [piece.run for piece in pieces if piece.iova is None]
        try:
            cursor = self._map(fresh) if fresh else 0
        except OSError:
            for run, iova in pieces:
                if iova is not None:
                    self._linger(run, iova)
            raise
        segments: list[DmaSegment] = []
        for run, iova in pieces:
            if iova is None:
                iova, cursor = cursor, cursor + run.length
            else:
                for mapping, start, end in self._parts(iova, run.length):
                    mapping.live += end - start
                    self._lingering_bytes -= end - start
            _append(segments, iova, run.length)
        return segments

    def unmap(self, dma_addr: int, length: int) -> None:
        """A mapping of which pages are left lingers with what is unmapped of it."""
        self._retry()
        for mapping, start, end in list(self._parts(dma_addr, length)):
            mapping.live -= end - start
            self._lingering_bytes += end - start
            if mapping.live:
                self._linger(mapping.part(start, end), start)
            else:
                self._lingering_bytes -= mapping.run.length
                if end - start < mapping.run.length:
                    self._lingering.forget(*_file_pages(mapping.run, mapping.iova))
                self._drop(mapping)

    def make_writable(self, dma_addr: int, length: int) -> None:
        """Whatever the client permits is permitted already. Raises DmaError (EPERM) for a file that is read-only."""
        if not all(_view(mapping.run).writable for mapping, _, _ in self._parts(dma_addr, length)):
            raise DmaError(errno.EPERM, "the client's file is open for reading only")

    def view(self, dma_addr: int, length: int) -> memoryview | None:  # noqa: ARG002 - the interface's
        """None: the CPU sees the memory where the client's file is mapped."""
        return None

    @property
    def held_pages(self) -> int:
        """Pages that linger, and those that could not be taken back."""
        return (self._lingering_bytes + sum(mapping.run.length for mapping in self._stuck)) // PAGE_SIZE

    def stats(self) -> dict[str, object]:
        """How many mappings there are, how many the kernel has left, and how many pages linger."""
        return {
            "iommu_mappings": len(self._mappings),
            "iommu_mappings_left": self._container.available,
            "lingering_pages": self._lingering_bytes // PAGE_SIZE,
        }

    def close(self) -> None:
        """Take back what could not be taken back before. The container stays its owner's."""
        self._retry()

    def _pieces(self, runs: Sequence[FileRun]) -> Iterator[_Piece]:
        """The runs, cut where pages linger, which are taken from those that do."""
        for run in runs:
            if not self._lingering:
                yield _Piece(run, None)
                continue
            cursor, run_end = run.offset, run.offset + run.length
            view, first, behind, _ = _file_pages(run, 0)
            for start, end, dma in self._lingering.take(view, first, behind):
                offset = start << PAGE_SHIFT
                if cursor < offset:
                    yield _Piece(run._replace(offset=cursor, length=offset - cursor), None)
                cursor = end << PAGE_SHIFT
                yield _Piece(run._replace(offset=offset, length=cursor - offset), dma << PAGE_SHIFT)
            if cursor < run_end:
                yield _Piece(run._replace(offset=cursor, length=run_end - cursor), None)

    def _map(self, runs: Sequence[FileRun]) -> int:
        """Map runs one behind the other; returns the address of the first. Raises OSError with nothing changed."""
        length = sum(run.length for run in runs)
        while True:
            base = cursor = self._iovas.alloc(length)
            try:
                for run in runs:
                    self._map_one(run, cursor)
                    cursor += run.length
            except OSError as error:
                for mapping, _, _ in list(self._parts(base, cursor - base)):
                    self._drop(mapping)
                if error.errno == errno.EEXIST:
                    # Somebody else's, now and later: these addresses are not freed.
                    cursor += run.length
                if cursor < base + length:
                    self._iovas.free(cursor, base + length - cursor)
                if error.errno != errno.EEXIST:
                    raise
            else:
                return base

    def _map_one(self, run: FileRun, iova: int) -> None:
        flags = MapFlags.READ | MapFlags.WRITE if _view(run).writable else MapFlags.READ
        try:
            self._container.map_dma(iova, run.backing.space.address + run.offset, run.length, flags)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OutOfRuns(len(self._mappings), "vfio_iommu_type1.dma_entry_limit") from error
            if error.errno == errno.ENOMEM:
                raise DmaError(errno.ENOMEM, "no more memory may be locked (RLIMIT_MEMLOCK)") from error
            raise
        self._mappings[iova] = _Mapping(iova, run)

    def _parts(self, iova: int, length: int) -> Iterator[tuple[_Mapping, int, int]]:
        """The mappings of a range, and which addresses of it each has."""
        end = iova + length
        while iova < end:
            mapping = self._mappings.floor(iova)
            if mapping is None or iova >= mapping.end:
                raise KeyError(f"{iova:#x} is not mapped")
            stop = min(end, mapping.end)
            yield mapping, iova, stop
            iova = stop

    def _linger(self, run: FileRun, iova: int) -> None:
        self._lingering.add(*_file_pages(run, iova))

    def _drop(self, mapping: _Mapping) -> None:
        self._mappings.pop(mapping.iova)
        self._give_back(mapping)

    def _retry(self) -> None:
        stuck, self._stuck = self._stuck, []
        for mapping in stuck:
            self._give_back(mapping)

    def _give_back(self, mapping: _Mapping) -> None:
        try:
            self._container.unmap_dma(mapping.iova, mapping.run.length)
        except OSError:
            self._stuck.append(mapping)  # its addresses stay out of use, and it is tried again
        else:
            self._iovas.free(mapping.iova, mapping.run.length)


class _Piece(NamedTuple):
    """What to map: it lingers at ``iova``, or nowhere."""

    run: FileRun
    iova: int | None


class _Mapping:
    """A mapping of the IOMMU; ``live`` bytes of it are in use."""

    __slots__ = ("iova", "live", "run")

    def __init__(self, iova: int, run: FileRun) -> None:
        self.iova = iova
        self.run = run
        self.live = run.length

    @property
    def end(self) -> int:
        return self.iova + self.run.length

    def part(self, start: int, end: int) -> FileRun:
        """What is mapped at the addresses ``[start, end)``."""
        return self.run._replace(offset=self.run.offset + start - self.iova, length=end - start)


def _view(run: FileRun) -> FileView:
    """Devices may do what the client permits, within what its file permits."""
    return FileView(run.backing, run.may_write and run.backing.writable, run.region)


def _file_pages(run: FileRun, iova: int) -> tuple[FileView, int, int, int]:
    """The pages of a run in its file, and the page number of ``iova``."""
    return _view(run), run.offset >> PAGE_SHIFT, run.offset + run.length >> PAGE_SHIFT, iova >> PAGE_SHIFT


def _append(segments: list[DmaSegment], dma_addr: int, length: int) -> None:
    if segments and segments[-1].dma_addr + segments[-1].length == dma_addr:
        segments[-1] = DmaSegment(segments[-1].dma_addr, segments[-1].length + length)
    else:
        segments.append(DmaSegment(dma_addr, length))
