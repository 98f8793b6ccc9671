"""The ``noiommu`` domain: the dma_addr is the page's address in physical memory. Nothing stands in a device's way."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE, AddressSpace
from server.dma.domain import DmaDomain, DmaSegment, FileRun
from server.dma.domains.page_pinning import MAX_PIN_BYTES, PagePins
from server.dma.errors import DmaDomainUnavailable, DmaError
from server.dma.run_rows import coalesced
from server.dma.spans import Ints

_PAGEMAP: Final = Path("/proc/self/pagemap")
_NEEDS_ROOT: Final = "the noiommu DMA domain needs root"
_ENTRY_BYTES: Final = 8
_PRESENT: Final = np.uint64(1 << 63)
_PFN: Final = np.uint64((1 << 55) - 1)
"""Documentation/admin-guide/mm/pagemap.rst: bits 0 to 54 of an entry, all 0 without CAP_SYS_ADMIN."""
_LOOKS: Final = 5
"""How often to look for a page's number before giving up."""


class NoIommuDomain(DmaDomain):
    """Physical addresses of pages that the kernel keeps where they are (:mod:`server.dma.domains.page_pinning`).

    A run is pinned as a whole, and let go when the last of its pages is unmapped: until then the others merely
    stay in memory. Two guest pages that alias one page of a file have the same dma_addr; each has a pin that covers
    it, and either will do for the other. 70 to 100 bytes per page are kept here.
    """

    name = "noiommu"
    locks_memory = True

    def __init__(self) -> None:
        """Raises DmaDomainUnavailable without the privilege to see physical addresses, or without io_uring."""
        try:
            self._pagemap = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DmaDomainUnavailable(f"{_NEEDS_ROOT}: {_PAGEMAP}: {error.strerror}") from error
        try:
            _check_privilege(self._pagemap)
            self._pins = PagePins()
        except BaseException:
            os.close(self._pagemap)
            raise
        self._pages_in: dict[int, int] = {}
        self._pinned_in: dict[int, int] = {}
        self._held = 0
        self._slot_of: dict[int, int] = {}
        self._other_slots_of: dict[int, list[int]] = {}

    @property
    def max_runs(self) -> int:
        """No limit of runs that lie apart; the pins themselves are limited, and OutOfRuns says so."""
        return 1 << 52

    def map_runs(self, runs: Sequence[FileRun], *, writable: bool) -> list[DmaSegment]:  # noqa: ARG002
        """Raises OSError with nothing changed: ENOMEM, or EFAULT where the client's file is not writable."""
        slots: list[int] = []
        pinned: list[Ints] = []
        try:
            for backing, offset, length, *_ in runs:
                if not backing.writable:
                    raise DmaError(
                        errno.EFAULT, "a file that is open for reading only cannot be pinned in memory"
                    )
                for start in range(offset, offset + length, MAX_PIN_BYTES):
                    size = min(MAX_PIN_BYTES, offset + length - start)
                    slots.append(self._pins.pin(backing.space.address + start, size))
                    pinned.append(_frames(self._pagemap, backing.space, start, size))
        except OSError:
            for slot in slots:
                self._pins.unpin(slot)
            raise
        for slot, frames in zip(slots, pinned, strict=True):
            self._keep(slot, frames)
        frames = np.concatenate(pinned)
        return coalesced(frames << PAGE_SHIFT, np.full(len(frames), PAGE_SIZE, np.int64))

    def unmap(self, dma_addr: int, length: int) -> None:
        """The pin goes with the last of its pages."""
        for frame in range(dma_addr >> PAGE_SHIFT, dma_addr + length >> PAGE_SHIFT):
            slot = self._forget(frame)
            self._pages_in[slot] -= 1
            self._held += 1
            if not self._pages_in[slot]:
                del self._pages_in[slot]
                self._held -= self._pinned_in.pop(slot)
                self._pins.unpin(slot)

    def make_writable(self, dma_addr: int, length: int) -> None:
        """Nothing keeps a device from writing."""

    def view(self, dma_addr: int, length: int) -> memoryview | None:  # noqa: ARG002 - the interface's
        """None: the CPU sees the memory where the client's file is mapped."""
        return None

    @property
    def held_pages(self) -> int:
        """Pages that are unmapped but pinned along with others that are not."""
        return self._held

    def stats(self) -> dict[str, object]:
        """How many ranges are pinned in memory, and how many of their pages are not in use."""
        return {"pinned_ranges": len(self._pages_in), "lingering_pages": self._held}

    def close(self) -> None:
        """Let go of everything. Calling it again does nothing."""
        self._pins.close()
        if self._pagemap >= 0:
            os.close(self._pagemap)
            self._pagemap = -1

    def _keep(self, slot: int, frames: Ints) -> None:
        self._pages_in[slot] = self._pinned_in[slot] = len(frames)
        for frame in frames.tolist():
            if self._slot_of.setdefault(frame, slot) != slot:
                self._other_slots_of.setdefault(frame, []).append(slot)

    def _forget(self, frame: int) -> int:
        """The slot that one mapping of ``frame`` is charged to, no longer: any that covers it."""
        others = self._other_slots_of.get(frame)
        if others is None:
            return self._slot_of.pop(frame)
        slot = others.pop()
        if not others:
            del self._other_slots_of[frame]
        return slot


def _frames(pagemap: int, space: AddressSpace, offset: int, length: int) -> Ints:
    """The page frame numbers of pinned pages. Raises DmaError (EFAULT) where they cannot be had.

    A pinned page stays where it is, but the entry of the page table that says so can be gone for a moment: reclaim
    and migration take it out before they find that the page is pinned. Touching the page brings it back.
    """
    address = space.address + offset
    for _ in range(_LOOKS):
        data = os.pread(pagemap, length // PAGE_SIZE * _ENTRY_BYTES, address // PAGE_SIZE * _ENTRY_BYTES)
        entries = np.frombuffer(data, np.uint64)
        absent = np.flatnonzero(entries & _PRESENT == 0)
        if not len(absent):
            break
        for page in absent.tolist():
            space.view[offset + page * PAGE_SIZE]
    frames = (entries & _PFN).astype(np.int64)
    if len(absent) or len(frames) != length // PAGE_SIZE or not frames.all():
        raise DmaError(errno.EFAULT, "the kernel does not say where a pinned page is")
    return frames


def _check_privilege(pagemap: int) -> None:
    space = AddressSpace(PAGE_SIZE)
    space.view[0] = 1  # so that there is a page
    try:
        _frames(pagemap, space, 0, PAGE_SIZE)
    except DmaError:
        raise DmaDomainUnavailable(
            f"{_NEEDS_ROOT}: {_PAGEMAP} hides physical addresses without CAP_SYS_ADMIN"
        ) from None
