"""Register dispatch: from an access in a region to the handler that serves it, with one look-up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import NamedTuple

from devices.pci.register_names import RegisterName, name_in

ReadHandler = Callable[[int, int], bytes]
"""``(offset, count)`` in the window, to exactly ``count`` bytes."""

WriteHandler = Callable[[int, memoryview], None]
"""``(offset, data)`` in the window; ``data`` is good during the call only."""


def read_zeros(offset: int, count: int) -> bytes:  # noqa: ARG001 - a ReadHandler
    """Answer for addresses where nothing is."""
    return bytes(count)


def ignore_write(offset: int, data: memoryview) -> None:
    """Take a write where nothing is, or where everything is read-only."""


class Window(NamedTuple):
    """``length`` bytes from ``start`` in a region that one pair of handlers serves, at any access width.

    Traces show ``NAME.REGISTER``, with the register that ``register_name`` knows at an offset in the window.
    """

    start: int
    length: int
    read: ReadHandler = read_zeros
    write: WriteHandler = ignore_write
    name: str = ""
    register_name: RegisterName | None = None


class WindowMap:
    """A region of ``size`` bytes made of windows; the gaps between them read as zeros.

    Raises ValueError where windows overlap or lie outside of the region.
    """

    def __init__(self, size: int, windows: Iterable[Window]) -> None:
        self.size = size
        self._named = _fill_gaps(size, sorted(windows, key=lambda window: window.start))
        self._windows = [window[:4] for window in self._named]  # unpacked on every access
        self._starts = [window.start for window in self._named]

    def read(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes; an access over a window's border is split there."""
        start, length, read, _ = self._windows[bisect_right(self._starts, offset) - 1]
        offset -= start
        if offset + count <= length:
            return read(offset, count)
        head = length - offset
        if head <= 0:
            return bytes(count)
        return read(offset, head) + self.read(start + length, count - head)

    def write(self, offset: int, data: memoryview) -> None:
        """Write ``data``; an access over a window's border is split there."""
        start, length, _, write = self._windows[bisect_right(self._starts, offset) - 1]
        offset -= start
        if offset + len(data) <= length:
            write(offset, data)
            return
        head = length - offset
        if head > 0:
            write(offset, data[:head])
            self.write(start + length, data[head:])

    def register_name(self, offset: int) -> str | None:
        """The name of the register at ``offset``; None in gaps, outside, and where the window has no names."""
        if not 0 <= offset < self.size:
            return None
        window = self._named[bisect_right(self._starts, offset) - 1]
        return name_in(window.name, offset - window.start, window.register_name)


def _fill_gaps(size: int, windows: list[Window]) -> list[Window]:
    filled: list[Window] = []
    end = 0
    for window in windows:
        if window.start < end or window.length <= 0 or window.start + window.length > size:
            raise ValueError(
                f"window {window.start:#x}+{window.length:#x} does not fit in a region of {size:#x} bytes"
            )
        if window.start > end:
            filled.append(Window(end, window.start - end))
        filled.append(window)
        end = window.start + window.length
    if end < size:
        filled.append(Window(end, size - end))
    return filled


class Register(NamedTuple):
    """A little-endian register of ``width`` bytes at ``offset`` of its block; read-only without ``write``.

    Traces show its ``name``.
    """

    offset: int
    width: int
    read: Callable[[], int]
    write: Callable[[int], None] | None = None
    name: str = ""


class RegisterBlock:
    """Registers of fixed widths, served as the :class:`Window` ``[0, length)``.

    Other widths do what is harmless: a read gives the bytes of the registers it touches, a write reaches only
    the registers that it covers whole.
    """

    def __init__(self, length: int, registers: Iterable[Register]) -> None:
        self.length = length
        self._at: list[Register | None] = [None] * length
        self._covering: list[Register | None] = [None] * length
        for register in registers:
            self._at[register.offset] = register
            for byte in range(register.offset, register.offset + register.width):
                self._covering[byte] = register

    def read(self, offset: int, count: int) -> bytes:
        """Read one register, or the bytes of those under an access of another width."""
        register = self._at[offset]
        if register is not None and register.width == count:
            return register.read().to_bytes(count, "little")
        return self._read_bytes(offset, count)

    def write(self, offset: int, data: memoryview) -> None:
        """Write one register, or those that an access of another width covers whole."""
        register = self._at[offset]
        if register is not None and register.width == len(data):
            if register.write is not None:
                register.write(int.from_bytes(data, "little"))
            return
        self._write_covered(offset, data)

    def register_name(self, offset: int) -> str | None:
        """The name of the register that has a byte at ``offset``: ``count``, or ``count+1`` inside of it."""
        register = self._covering[offset] if 0 <= offset < self.length else None
        return None if register is None else name_in(register.name, offset - register.offset)

    def _read_bytes(self, offset: int, count: int) -> bytes:
        image = bytearray(count)
        at = 0
        while at < count:
            register = self._covering[offset + at]
            if register is None:
                at += 1
                continue
            skip = offset + at - register.offset
            part = register.read().to_bytes(register.width, "little")[skip : skip + count - at]
            image[at : at + len(part)] = part
            at += len(part)
        return bytes(image)

    def _write_covered(self, offset: int, data: memoryview) -> None:
        end = offset + len(data)
        at = offset
        while at < end:
            register = self._at[at]
            if register is None or at + register.width > end:
                at += 1
                continue
            if register.write is not None:
                register.write(int.from_bytes(data[at - offset : at - offset + register.width], "little"))
            at += register.width
