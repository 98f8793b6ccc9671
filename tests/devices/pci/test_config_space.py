"""Expected values are those of the PCI Local Bus Specification 3.0, chapter 6."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.pci.config_space import ConfigSpace, PciIdentity
from devices.pci.constants import InterruptPin

IDENTITY = PciIdentity(
    vendor=0x1AF4, device=0x1050, class_code=0x038000, revision=1, subsystem_vendor=0x1AF4, subsystem=0x1100
)


def config_with_bars() -> ConfigSpace:
    config = ConfigSpace(IDENTITY, interrupt_pin=InterruptPin.INTA)
    config.add_memory_bar(1, 4096)
    config.add_memory_bar(4, 16384, is_64bit=True, prefetchable=True)
    config.add_capability(0x11, bytes(10), b"\0\xc0")
    return config


def test_the_header_says_what_the_function_is() -> None:
    config = ConfigSpace(IDENTITY)
    assert config.read(0x00, 4) == bytes.fromhex("f41a5010")
    assert config.read(0x08, 4) == bytes.fromhex("01008003")
    assert config.read(0x2C, 4) == bytes.fromhex("f41a0011")
    assert config.read(0x0E, 1) == b"\0"
    assert config.read(0x3D, 1) == b"\0"
    assert config.read(0x06, 2) == b"\0\0"


def test_identity_is_read_only() -> None:
    config = ConfigSpace(IDENTITY)
    config.write(0, b"\xff" * 4)
    config.write(8, b"\xff" * 4)
    assert config.read(0, 4) == bytes.fromhex("f41a5010")
    assert config.read(8, 4) == bytes.fromhex("01008003")


def test_a_bar_reads_back_its_size_when_all_ones_are_written() -> None:
    config = config_with_bars()
    config.write(0x14, b"\xff" * 4)
    assert config.get(0x14, 4) == 0xFFFFF000
    config.write(0x20, b"\xff" * 8)
    assert config.get(0x20, 8) == 0xFFFFFFFFFFFFC00C


def test_a_bar_keeps_the_address_it_is_given() -> None:
    config = config_with_bars()
    config.write(0x20, (0x40_0001_4000).to_bytes(8, "little"))
    assert config.get(0x20, 8) == 0x40_0001_400C


def test_an_unimplemented_bar_and_the_rom_read_as_zero() -> None:
    config = config_with_bars()
    for offset in (0x10, 0x18, 0x1C, 0x30):
        config.write(offset, b"\xff" * 4)
        assert config.get(offset, 4) == 0


@pytest.mark.parametrize("size", [0, 8, 48, 4097])
def test_a_bar_size_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ConfigSpace(IDENTITY).add_memory_bar(0, size)


def test_only_implemented_command_bits_stick() -> None:
    config = ConfigSpace(IDENTITY)
    config.write(4, b"\xff\xff")
    assert config.get(4, 2) == 0x0146
    with_pin = ConfigSpace(IDENTITY, interrupt_pin=InterruptPin.INTA)
    with_pin.write(4, b"\xff\xff")
    assert with_pin.get(4, 2) == 0x0546
    assert with_pin.get(0x3D, 1) == 1


def test_status_error_bits_clear_where_ones_are_written() -> None:
    config = ConfigSpace(IDENTITY)
    config.put(6, 2, 0xF900)
    config.write(7, b"\x80")
    assert config.get(6, 2) == 0x7900


def test_capabilities_form_a_list_on_dword_borders() -> None:
    config = ConfigSpace(IDENTITY)
    assert config.get(0x34, 1) == 0
    first = config.add_capability(0x09, bytes(11))
    second = config.add_capability(0x11, b"\1\2", b"\0\xff")
    assert (first, second) == (0x40, 0x50)
    assert config.read(0x34, 1) == b"\x40"
    assert config.read(0x40, 2) == b"\x09\x50"
    assert config.read(0x50, 4) == b"\x11\0\1\2"
    assert config.get(6, 2) & 0x10
    config.write(0x50, b"\xff" * 4)
    assert config.read(0x50, 4) == b"\x11\0\1\xff"


def test_capabilities_that_do_not_fit_are_refused() -> None:
    config = ConfigSpace(IDENTITY)
    config.add_capability(0x09, bytes(190))
    with pytest.raises(ValueError, match="room"):
        config.add_capability(0x09, b"")


@pytest.mark.parametrize("size", [256, 4096])
def test_the_space_has_the_size_asked_for(size: int) -> None:
    config = ConfigSpace(IDENTITY, size=size)
    assert config.read(0, size)[:4] == bytes.fromhex("f41a5010")
    assert config.read(size - 2, 4) == bytes(4)
    config.write(size - 2, b"\xff" * 4)


def test_no_other_size_exists() -> None:
    with pytest.raises(ValueError, match="256 or 4096"):
        ConfigSpace(IDENTITY, size=512)


def test_reset_restores_the_power_on_values() -> None:
    config = config_with_bars()
    fresh = config.read(0, 256)
    config.write(0, b"\xff" * 256)
    config.put(6, 2, 0xFFFF)
    assert config.read(0, 256) != fresh
    config.reset()
    assert config.read(0, 256) == fresh


@given(offset=st.integers(0, 300), data=st.binary(max_size=300))
def test_bytewise_writes_do_what_one_wide_write_does(offset: int, data: bytes) -> None:
    wide, narrow = config_with_bars(), config_with_bars()
    wide.write(offset, data)
    for at, byte in enumerate(data, offset):
        narrow.write(at, bytes([byte]))
    assert wide.read(0, 256) == narrow.read(0, 256)
