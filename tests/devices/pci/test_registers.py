from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.pci.registers import Register, RegisterBlock, Window, WindowMap


class Cells:
    """Registers that remember what was written."""

    def __init__(self, **values: int) -> None:
        self.values = values
        self.writes: list[tuple[str, int]] = []

    def get(self, name: str) -> Callable[[], int]:
        return lambda: self.values[name]

    def set(self, name: str) -> Callable[[int], None]:
        return lambda value: self.writes.append((name, value))

    def register(self, offset: int, width: int, name: str) -> Register:
        return Register(offset, width, self.get(name), self.set(name))


class Memory:
    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self.data[offset : offset + count])

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def window(self, start: int) -> Window:
        return Window(start, len(self.data), self.read, self.write)


def test_an_access_reaches_the_window_under_it_at_the_window_s_own_offset() -> None:
    low, high = Memory(b"low!"), Memory(b"high")
    region = WindowMap(64, [high.window(32), low.window(4)])
    assert region.read(5, 3) == b"ow!"
    region.write(33, memoryview(b"IG"))
    assert high.data == b"hIGh"


def test_gaps_read_as_zeros_and_ignore_writes() -> None:
    region = WindowMap(64, [Memory(b"data").window(8)])
    assert region.read(0, 4) == bytes(4)
    assert region.read(60, 4) == bytes(4)
    region.write(60, memoryview(b"gone"))
    assert region.read(60, 4) == bytes(4)


def test_a_region_without_windows_reads_as_zeros() -> None:
    assert WindowMap(16, []).read(15, 1) == b"\0"


def test_an_access_over_borders_is_split() -> None:
    first, second = Memory(b"1111"), Memory(b"2222")
    region = WindowMap(16, [first.window(2), second.window(8)])
    assert region.read(0, 16) == b"\0\x001111\0\x002222\0\0\0\0"
    region.write(4, memoryview(b"abcdef"))
    assert first.data == b"11ab"
    assert second.data == b"ef22"


def test_an_access_beyond_the_region_reads_zeros() -> None:
    region = WindowMap(8, [Memory(b"12345678").window(0)])
    assert region.read(6, 4) == b"78\0\0"
    region.write(6, memoryview(b"abcd"))
    assert region.read(0, 8) == b"123456ab"


@pytest.mark.parametrize("windows", [[Window(0, 8), Window(4, 8)], [Window(12, 8)], [Window(0, 0)]])
def test_windows_that_do_not_fit_are_refused(windows: list[Window]) -> None:
    with pytest.raises(ValueError, match="window"):
        WindowMap(16, windows)


def test_a_register_is_read_and_written_at_its_width() -> None:
    cells = Cells(word=0x1234, long=0xDEADBEEF)
    block = RegisterBlock(8, [cells.register(0, 2, "word"), cells.register(4, 4, "long")])
    assert block.read(0, 2) == b"\x34\x12"
    assert block.read(4, 4) == b"\xef\xbe\xad\xde"
    block.write(4, memoryview(b"\1\0\0\0"))
    assert cells.writes == [("long", 1)]


def test_a_narrow_read_gives_the_bytes_of_the_register() -> None:
    block = RegisterBlock(8, [Cells(long=0xDEADBEEF).register(4, 4, "long")])
    assert block.read(6, 1) == b"\xad"
    assert block.read(5, 2) == b"\xbe\xad"


def test_a_wide_access_covers_several_registers_in_order() -> None:
    cells = Cells(low=0x11111111, high=0x22222222)
    block = RegisterBlock(8, [cells.register(0, 4, "low"), cells.register(4, 4, "high")])
    assert block.read(0, 8) == b"\x11" * 4 + b"\x22" * 4
    block.write(0, memoryview(b"\1\0\0\0\2\0\0\0"))
    assert cells.writes == [("low", 1), ("high", 2)]


def test_a_narrow_write_changes_nothing() -> None:
    cells = Cells(long=0)
    block = RegisterBlock(8, [cells.register(4, 4, "long")])
    for offset, data in ((4, b"\1"), (6, b"\1\1"), (2, b"\1\1\1\1")):
        block.write(offset, memoryview(data))
    assert cells.writes == []


def test_a_read_only_register_ignores_writes() -> None:
    block = RegisterBlock(8, [Register(0, 4, lambda: 7)])
    block.write(0, memoryview(b"\1\0\0\0"))
    block.write(0, memoryview(b"\1\0\0\0\0\0\0\0"))
    assert block.read(0, 4) == b"\7\0\0\0"


@given(offset=st.integers(0, 15), count=st.integers(1, 16))
def test_any_read_shows_the_bytes_of_one_little_endian_image(offset: int, count: int) -> None:
    count = min(count, 16 - offset)
    cells = Cells(a=0x0201, b=0x06050403, c=0x0E0D0C0B0A090807)
    block = RegisterBlock(
        16, [cells.register(1, 2, "a"), cells.register(3, 4, "b"), cells.register(7, 8, "c")]
    )
    image = bytes(range(15)) + b"\0"
    assert block.read(offset, count) == image[offset : offset + count]
