"""Bytes at few places of a large address space."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

PAGE = 4096


class _Page:
    """What is known within a page: runs of bytes by where they start, in order; no two overlap."""

    __slots__ = ("runs", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.runs: list[bytes] = []

    def overlapping(self, start: int, end: int) -> range:
        """Which runs have a byte of a range."""
        first = bisect_right(self.starts, start)
        if first and self.starts[first - 1] + len(self.runs[first - 1]) > start:
            first -= 1
        return range(first, max(first, bisect_left(self.starts, end)))

    def replace(self, start: int, end: int, data: bytes) -> None:
        """Of a range nothing is known any more but ``data``, which begins there or is empty."""
        old = self.overlapping(start, end)
        kept = [(start, data)]
        if old:
            first, last = old[0], old[-1]
            kept.insert(0, (self.starts[first], self.runs[first][: max(start - self.starts[first], 0)]))
            kept.append((end, self.runs[last][end - self.starts[last] :]))
        kept = [(at, run) for at, run in kept if run]
        self.starts[old.start : old.stop] = [at for at, _ in kept]
        self.runs[old.start : old.stop] = [run for _, run in kept]


class SparseBytes:
    """What is known of some bytes, and which these are: little more than the bytes themselves."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}

    def put(self, address: int, data: bytes) -> None:
        """These bytes are known from now on."""
        for number, start, part in _pieces(address, data):
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = _Page()
            page.replace(start, start + len(part), part)

    def drop(self, address: int, length: int) -> None:
        """These are no longer known."""
        for number in range(address // PAGE, -(-(address + length) // PAGE)):
            if number in self._pages:
                start = max(address - number * PAGE, 0)
                self._pages[number].replace(start, min(address + length - number * PAGE, PAGE), b"")

    def differs(self, address: int, data: bytes) -> bool:
        """Whether any of the bytes that are known is another one in ``data``."""
        for number, start, part in _pieces(address, data):
            for at, run in self._known(number, start, start + len(part)):
                if run != part[at - start : at - start + len(run)]:
                    return True
        return False

    def missing(self, address: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The parts of ``data`` that are for bytes which are not known."""
        for number, start, part in _pieces(address, data):
            done = start
            for at, run in self._known(number, start, start + len(part)):
                if done < at:
                    yield number * PAGE + done, part[done - start : at - start]
                done = at + len(run)
            if done < start + len(part):
                yield number * PAGE + done, part[done - start :]

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Everything that is known, as address and bytes; no run is in more than one page."""
        for number, page in self._pages.items():
            for start, run in zip(page.starts, page.runs, strict=True):
                yield number * PAGE + start, run

    def _known(self, number: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """What is known of a part of a page, by place in the page."""
        page = self._pages.get(number)
        if page is None:
            return
        for index in page.overlapping(start, end):
            at, run = page.starts[index], page.runs[index]
            yield max(at, start), run[max(start - at, 0) : end - at]


def _pieces(address: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """``data`` page by page: the number of the page, where in it, and what."""
    done = 0
    while done < len(data):
        number, start = divmod(address + done, PAGE)
        part = data[done : done + PAGE - start]
        yield number, start, part
        done += len(part)
