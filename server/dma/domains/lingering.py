"""Pages that are still in the domain although nobody uses them, by where they are in their files."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.dma.backing import BackingFile
from server.dma.run_rows import DMA, END, START, Rows, empty_rows, gaps
from server.dma.runs import RunMap
from server.dma.spans import Spans


class FileView(NamedTuple):
    """A file as a device may use it, through one DMA region."""

    backing: BackingFile
    writable: bool
    region: int = 0


class LingeringPages:
    """Where the pages of files linger in a domain. All are page numbers: of the file, and of the dma_addr.

    A page of a file that lingers in two places is known in one of them. Kept as runs, whose START is a page of the
    file: 13 to 35 bytes each (:mod:`server.dma.runs`).
    """

    def __init__(self) -> None:
        self._files: dict[FileView, RunMap] = {}

    def __bool__(self) -> bool:
        return bool(self._files)

    def add(self, view: FileView, start: int, end: int, dma: int) -> None:
        """The pages ``[start, end)`` of a file linger at ``dma`` on."""
        runs = self._files.setdefault(view, RunMap())
        span = Spans.one(start, end)
        unknown = gaps(span, runs.lookup(span))
        new = empty_rows(len(unknown.start))
        new[START], new[END] = unknown
        new[DMA] = unknown.start + (dma - start)
        runs.insert(new)

    def take(self, view: FileView, start: int, end: int) -> list[tuple[int, int, int]]:
        """The parts of ``[start, end)`` that linger: start, end and dma of each. They are no longer known here."""
        runs = self._files.get(view)
        if runs is None or not runs.any_in(start, end):
            return []
        found = runs.lookup(Spans.one(start, end))
        self._remove(view, runs, start, end)
        return [(first, behind, dma) for first, behind, dma in found[[START, END, DMA]].T.tolist()]

    def forget(self, view: FileView, start: int, end: int, dma: int) -> None:
        """The pages ``[start, end)`` of a file are no longer at ``dma`` on; they may linger elsewhere."""
        runs = self._files.get(view)
        if runs is not None:
            self._remove(view, runs, start, end, dma - start)

    def _remove(self, view: FileView, runs: RunMap, start: int, end: int, delta: int | None = None) -> None:
        def remove(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
            if delta is not None:
                meant = meant & (rows[DMA] - rows[START] == delta)
            return rows[:, ~meant]

        runs.update(Spans.one(start, end), remove)
        if not len(runs):
            del self._files[view]
