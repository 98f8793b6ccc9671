"""Bytes at few places of a large address space."""

from __future__ import annotations

from collections.abc import Iterator

LINE = 64


class SparseBytes:
    """What is known of some bytes, and which these are."""

    def __init__(self) -> None:
        self._lines: dict[int, tuple[bytearray, bytearray]] = {}
        """The bytes of each line, and 1 for each that is known."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, address: int, data: bytes) -> None:
        """These bytes are known from now on."""
        for line, start, part in _pieces(address, data):
            values, known = self._lines.setdefault(line, (bytearray(LINE), bytearray(LINE)))
            values[start : start + len(part)] = part
            known[start : start + len(part)] = b"\1" * len(part)

    def drop(self, address: int, length: int) -> None:
        """These are no longer known."""
        for line, start, part in _pieces(address, bytes(length)):
            if line in self._lines:
                self._lines[line][1][start : start + len(part)] = part

    def differs(self, address: int, data: bytes) -> bool:
        """Whether any of the bytes that are known is another one in ``data``."""
        for line, start, part in _pieces(address, data):
            if line in self._lines:
                values, known = self._lines[line]
                for index, byte in enumerate(part, start):
                    if known[index] and values[index] != byte:
                        return True
        return False

    def missing(self, address: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The parts of ``data`` that are for bytes which are not known."""
        for line, start, part in _pieces(address, data):
            known = self._lines[line][1] if line in self._lines else bytes(LINE)
            at = known.find(0, start, start + len(part))
            while at >= 0:
                end = known.find(1, at, start + len(part))
                end = start + len(part) if end < 0 else end
                yield line * LINE + at, part[at - start : end - start]
                at = known.find(0, end, start + len(part))

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Everything that is known, as address and bytes."""
        for line, (values, known) in self._lines.items():
            start = known.find(1)
            while start >= 0:
                end = known.find(0, start)
                end = LINE if end < 0 else end
                yield line * LINE + start, bytes(values[start:end])
                start = known.find(1, end)


def _pieces(address: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    done = 0
    while done < len(data):
        line, start = divmod(address + done, LINE)
        part = data[done : done + LINE - start]
        yield line, start, part
        done += len(part)
