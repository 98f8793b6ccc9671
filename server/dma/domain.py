"""What a dma_addr is: the interface between the pin cache and whatever translates for the device.

A domain maps runs of guest pages to addresses that a device engine may use, as the kernel's DMA API does
with or without an IOMMU. It keeps no reference counts: the pin cache maps every page at most once and says
when it is to go. A new kind of domain implements :class:`DmaDomain` in a file of its own.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from devices.contract import DmaSegment
from server.dma.backing import BackingFile
from server.dma.errors import DmaError

__all__ = ["DmaDomain", "DmaSegment", "FileRun", "OutOfRuns", "coalesce"]


class FileRun(NamedTuple):
    """``length`` bytes of guest memory, whole pages, at ``offset`` in the client's file.

    ``may_write`` says whether the client permits writing there, wanted now or not. A run lies in one DMA region, whose
    generation ``region`` is.
    """

    backing: BackingFile
    offset: int
    length: int
    may_write: bool = True
    region: int = 0


class OutOfRuns(DmaError):  # noqa: N818 - a condition of the domain, as StopIteration is one
    """The domain cannot hold that many separate runs (``errno`` is ENOMEM)."""

    def __init__(self, runs: int, limited_by: str) -> None:
        super().__init__(
            errno.ENOMEM, f"the DMA domain holds no more than {runs} separate runs of pages ({limited_by})"
        )


class DmaDomain(ABC):
    """Addresses of guest pages for a device. All lengths and addresses are multiples of the page size."""

    name: str
    """What ``--dma-domain`` calls it."""
    runs_limited_by: str = "by design"
    """What bounds :attr:`max_runs`, for who runs into it."""
    locks_memory: bool = False
    """Whether mapped pages are locked in memory, so that RLIMIT_MEMLOCK is the limit unless another is set."""

    @property
    @abstractmethod
    def max_runs(self) -> int:
        """How many separate runs the domain can hold at this moment; the cache never asks for more."""

    @abstractmethod
    def map_runs(self, runs: Sequence[FileRun], *, writable: bool) -> list[DmaSegment]:
        """Map a scatter list; the segments, in order, cover exactly the runs, in as few pieces as possible.

        A domain with a page table of its own gives one segment, so that scattered pages become contiguous.
        Raises OSError (ENOMEM above all) with nothing changed.
        """

    @abstractmethod
    def unmap(self, dma_addr: int, length: int) -> None:
        """Take pages out that :meth:`map_runs` gave; any part of any number of neighbouring mappings.

        Must not fail: what cannot be unmapped now is kept out of use until it can.
        """

    @abstractmethod
    def make_writable(self, dma_addr: int, length: int) -> None:
        """Let the device write pages that were mapped without ``writable``, at the same dma_addr.

        Raises OSError with nothing changed.
        """

    def make_readonly(self, dma_addr: int, length: int) -> None:  # noqa: B027 - not every domain can
        """Undo :meth:`make_writable`, where that can be undone."""

    @property
    def held_pages(self) -> int:
        """Pages that are still reached or locked although they were unmapped; they count against the limit."""
        return 0

    @abstractmethod
    def view(self, dma_addr: int, length: int) -> memoryview | None:
        """The mapped pages as the CPU sees them at that address; None where only the device can use it."""

    def stats(self) -> dict[str, object]:
        """What an operator may want to know of this kind of domain: JSON values."""
        return {}

    def close(self) -> None:  # noqa: B027 - most domains hold nothing
        """Give back what the domain itself holds. All pages have been unmapped."""


def coalesce(runs: Sequence[FileRun]) -> list[FileRun]:
    """The same memory with neighbours in a file made one."""
    merged: list[FileRun] = []
    for run in runs:
        if merged:
            last = merged[-1]
            if last.backing is run.backing and last.offset + last.length == run.offset:
                merged[-1] = last._replace(length=last.length + run.length)
                continue
        merged.append(run)
    return merged
