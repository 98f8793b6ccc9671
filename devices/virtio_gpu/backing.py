"""Guest memory behind a resource: pinned while it can be, copied out of, never written."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate

from devices.contract import GuestMemory, GuestMemoryError, GuestRange, Look, PinnedPages, Prot

PAGE_SHIFT = 12
_PAGE_MASK = (1 << PAGE_SHIFT) - 1


class Backing:
    """A scatter list of guest memory, seen as ``length`` bytes in a row.

    The pages are pinned once, when the backing is made. Where the client takes any of them away they are released,
    and pinned again at the next use. Memory that the client did not share is read by message each time.
    """

    __slots__ = ("_copied", "_ends", "_memory", "_pins", "_shared", "length", "pages", "ranges")

    def __init__(self, ranges: Sequence[GuestRange], memory: Callable[[], GuestMemory]) -> None:
        """Pin ``ranges`` in what ``memory()`` gives. Raises :class:`GuestMemoryError`, but not for EFAULT."""
        self.ranges = tuple(ranges)
        self._ends = list(accumulate(length for _, length in self.ranges))
        self.length = self._ends[-1] if self._ends else 0
        self.pages = sum(
            ((address & _PAGE_MASK) + length + _PAGE_MASK) >> PAGE_SHIFT for address, length in ranges
        )
        self._memory = memory
        self._copied: tuple[tuple[int, ...], int] | None = None
        """The last copy: from where to which place, and of what version."""
        self._pins: PinnedPages | None = None
        self._shared = True
        self._pin()

    @property
    def pinned(self) -> bool:
        """Whether the pages are pinned now."""
        return self._pins is not None

    def release(self) -> None:
        """Let go of the pages; they are pinned again when they are needed again."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins.release()

    def look(self, offset: int, length: int) -> Look | None:
        """A part of the memory in place, None where it is not shared; good until the device awaits.

        Raises :class:`GuestMemoryError` where it cannot be pinned again.
        """
        pins = self._pins
        if pins is None or pins.revoked:
            pins = self._pin()
            if pins is None:
                return None
        return pins.look(offset, length)

    def observe(self, offset: int, length: int) -> None:
        """Where the session is recorded: what is here now, the guest shows."""
        with suppress(GuestMemoryError):  # nobody asked for a look, so nobody is told
            if self._memory().observed:
                self.look(offset, length)

    async def copy_rows(
        self,
        offset: int,
        pitch: int,
        target: memoryview,
        target_pitch: int,
        row: int,
        rows: int,
        place: int | None = None,
    ) -> None:
        """Copy ``rows`` rows of ``row`` bytes, ``pitch`` apart from ``offset``, to ``target``, ``target_pitch`` apart.

        The caller has checked that both ends are within bounds. ``place``: where ``target`` is in an image that
        nothing but this changes, so that what was just copied there need not be copied again.
        Raises :class:`GuestMemoryError`.
        """
        if row == pitch == target_pitch:
            row, rows = row * rows, 1
        look = self.look(offset, pitch * (rows - 1) + row)
        if look is None:
            self._copied = None
            for index in range(rows):
                start = index * target_pitch
                await self._read_into(offset + index * pitch, target[start : start + row])
        elif place is None or not self._copy_changes(look, (place, offset, pitch, row, rows), target):
            _copy_rows(look.views, pitch, target, target_pitch, row, rows)

    def _copy_changes(self, look: Look, copy: tuple[int, ...], target: memoryview) -> bool:
        """Bring ``target`` up to date where the last copy was the same; False where all has to be copied."""
        if look.version is None:
            return False
        before, self._copied = self._copied, (copy, look.version)
        if before == self._copied:
            return True
        rows = copy[-1]
        if rows != 1 or len(look.views) != 1 or before != (copy, look.version - 1):
            return False
        for start, length in look.changes:
            target[start : start + length] = look.views[0][start : start + length]
        return True

    def _pin(self) -> PinnedPages | None:
        if not self._shared:
            return None
        self.release()
        try:
            self._pins = self._memory().pin_pages(self.ranges, Prot.READ, self._unmapped)
        except GuestMemoryError as error:
            if error.errno != errno.EFAULT:
                raise
            self._shared = False
        return self._pins

    def _unmapped(self, pins: PinnedPages) -> None:
        if pins is self._pins:
            self._pins = None
        pins.release()

    async def _read_into(self, offset: int, target: memoryview) -> None:
        done = 0
        index = bisect_right(self._ends, offset)
        while done < len(target):
            address, length = self.ranges[index]
            start = offset + done - (self._ends[index] - length)
            piece = await self._memory().read(address + start, min(length - start, len(target) - done))
            target[done : done + len(piece)] = piece
            done += len(piece)
            index += 1


def _copy_rows(
    views: Sequence[memoryview], pitch: int, target: memoryview, target_pitch: int, row: int, rows: int
) -> None:
    if rows == 1 and len(views) == 1:
        target[:row] = views[0]
        return
    copy_run = _copier(views)
    for index in range(rows):
        start = index * target_pitch
        copy_run(index * pitch, target[start : start + row])


def _copier(views: Sequence[memoryview]) -> Callable[[int, memoryview], None]:
    """A function that copies from an offset on to fill a target."""
    if len(views) == 1:
        whole = views[0]

        def copy_one(offset: int, target: memoryview) -> None:
            target[:] = whole[offset : offset + len(target)]

        return copy_one
    ends = list(accumulate(len(view) for view in views))

    def copy_many(offset: int, target: memoryview) -> None:
        done = 0
        index = bisect_right(ends, offset)
        while done < len(target):
            view = views[index]
            start = offset + done - (ends[index] - len(view))
            piece = view[start : start + len(target) - done]
            target[done : done + len(piece)] = piece
            done += len(piece)
            index += 1

    return copy_many
