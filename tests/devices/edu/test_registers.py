"""Expected values are those of QEMU's docs/specs/edu.rst, worked out by hand."""

from __future__ import annotations

import struct

import pytest

from devices.contract import RegionAccess
from devices.edu import Edu
from devices.testing import FakeHost
from tests.devices.edu.driver import (
    ACKNOWLEDGE,
    ALL_ONES,
    BAR0,
    BUFFER,
    CONFIG,
    COUNT,
    DESTINATION,
    FACTORIAL,
    ID,
    INTERRUPTS,
    INTX,
    LIVENESS,
    MSI,
    RAISE,
    SOURCE,
    STATUS,
    LaterHost,
    line_is_up,
    plugged_in,
    read,
    write,
)


def test_configuration_space_says_1234_11e8_with_a_memory_bar_of_1_mib_a_pin_and_msi() -> None:
    device = Edu()
    assert device.region_read(CONFIG, 0, 4) == bytes.fromhex("3412e811")
    device.region_write(CONFIG, 0x10, memoryview(b"\xff" * 4))
    assert device.region_read(CONFIG, 0x10, 4) == struct.pack("<I", 0xFFF00000)
    assert device.region_read(CONFIG, 0x3D, 1) == b"\1"
    assert device.region_read(CONFIG, 0x34, 1) == b"\x40"
    assert device.region_read(CONFIG, 0x40, 1) == b"\5"
    assert [irq.count for irq in device.irqs] == [1, 1, 0, 1, 1]
    assert device.regions[BAR0].size == 1 << 20
    assert device.regions[BAR0].access == RegionAccess.READ | RegionAccess.WRITE


def test_the_identification_is_version_1_0_of_edu_and_read_only() -> None:
    device = plugged_in(FakeHost())
    write(device, ID, 0)
    assert read(device, ID) == 0x010000ED


@pytest.mark.parametrize(
    ("value", "inverted"), [(0, 0xFFFFFFFF), (0xFFFFFFFF, 0), (0x12345678, 0xEDCBA987), (1 << 31, 0x7FFFFFFF)]
)
def test_the_liveness_check_inverts(value: int, inverted: int) -> None:
    device = plugged_in(FakeHost())
    write(device, LIVENESS, value)
    assert read(device, LIVENESS) == inverted


@pytest.mark.parametrize(
    ("number", "result"),
    [
        (0, 1),
        (1, 1),
        (5, 120),
        (12, 479001600),
        (13, 6227020800 - (1 << 32)),
        (33, 1 << 31),
        (34, 0),
        (35, 0),
        (0xFFFFFFFF, 0),
    ],
)
def test_a_factorial_is_computed_in_32_bits_however_large_the_number_is(number: int, result: int) -> None:
    """33! has the factor 2**31 and an odd one, 34! has the factor 2**32."""
    device = plugged_in(FakeHost())
    write(device, FACTORIAL, number)
    assert read(device, STATUS) == 0
    assert read(device, FACTORIAL) == result


def test_while_a_factorial_is_computed_the_status_says_so_and_another_one_is_ignored() -> None:
    host = LaterHost()
    device = plugged_in(host)
    write(device, FACTORIAL, 5)
    assert read(device, STATUS) == 0x01
    write(device, FACTORIAL, 6)
    write(device, STATUS, 0)
    assert read(device, STATUS) == 0x01
    host.run()
    assert (read(device, STATUS), read(device, FACTORIAL)) == (0, 120)


def test_only_the_interrupt_bit_of_the_status_can_be_written() -> None:
    device = plugged_in(FakeHost())
    write(device, STATUS, ALL_ONES)
    assert read(device, STATUS) == 0x80
    write(device, STATUS, 0x7F)
    assert read(device, STATUS) == 0


@pytest.mark.parametrize(("msi", "interrupt"), [(False, INTX), (True, MSI)])
def test_a_factorial_interrupts_where_the_status_asks_for_it(msi: bool, interrupt: tuple[int, int]) -> None:
    device = plugged_in(host := FakeHost(), msi=msi)
    write(device, FACTORIAL, 4)
    assert (host.interrupts, read(device, INTERRUPTS)) == ([], 0)
    write(device, STATUS, 0x80)
    write(device, FACTORIAL, 4)
    assert host.interrupts == [interrupt]
    assert read(device, INTERRUPTS) == 0x01


def test_raised_values_are_collected_until_they_are_acknowledged() -> None:
    device = plugged_in(host := FakeHost())
    write(device, RAISE, 0x06)
    write(device, RAISE, 0x80000000)
    assert read(device, INTERRUPTS) == 0x80000006
    assert line_is_up(device)
    assert host.interrupts == [INTX, INTX]
    write(device, ACKNOWLEDGE, ALL_ONES)
    assert read(device, INTERRUPTS) == 0
    assert not line_is_up(device)
    assert host.interrupts == [INTX, INTX]


def test_the_line_goes_on_interrupting_until_everything_is_acknowledged() -> None:
    device = plugged_in(host := FakeHost())
    write(device, RAISE, 0x03)
    host.interrupts.clear()
    write(device, ACKNOWLEDGE, 0x01)
    assert (read(device, INTERRUPTS), line_is_up(device), host.interrupts) == (0x02, True, [INTX])
    write(device, ACKNOWLEDGE, 0x02)
    assert (read(device, INTERRUPTS), line_is_up(device), host.interrupts) == (0, False, [INTX])


def test_with_msi_each_raise_is_one_message_and_an_acknowledge_none() -> None:
    device = plugged_in(host := FakeHost(), msi=True)
    write(device, RAISE, 0x03)
    write(device, ACKNOWLEDGE, 0x01)
    assert host.interrupts == [MSI]
    write(device, RAISE, 0x01)
    assert host.interrupts == [MSI, MSI]


def test_raising_nothing_does_not_interrupt() -> None:
    device = plugged_in(host := FakeHost())
    write(device, RAISE, 0)
    assert (host.interrupts, line_is_up(device)) == ([], False)


def test_write_only_registers_and_places_without_a_register_read_all_ones() -> None:
    device = plugged_in(FakeHost())
    for offset in (RAISE, ACKNOWLEDGE, 0x0C, 0x28, 0x7C, 0x84, 0xA0, BUFFER, 0xFFFFC):
        write(device, offset, 0)
        assert read(device, offset) == ALL_ONES


@pytest.mark.parametrize("width", [1, 2, 8])
def test_below_0x80_only_accesses_of_4_bytes_reach_a_register(width: int) -> None:
    device = plugged_in(host := FakeHost())
    for offset in (LIVENESS, FACTORIAL, STATUS, RAISE):
        write(device, offset, 0, width)
    assert [read(device, offset) for offset in (LIVENESS, FACTORIAL, STATUS, INTERRUPTS)] == [0, 0, 0, 0]
    assert read(device, ID, width) == (1 << 8 * width) - 1
    assert host.interrupts == []


def test_from_0x80_on_accesses_of_4_and_8_bytes_reach_a_register() -> None:
    device = plugged_in(FakeHost())
    for offset in (SOURCE, DESTINATION, COUNT):
        write(device, offset, 0x1122334455667788, 8)
        assert read(device, offset, 8) == 0x1122334455667788
        assert read(device, offset) == 0x55667788
        write(device, offset, 0x99, 2)
        write(device, offset + 4, 0x99)
        assert read(device, offset, 8) == 0x1122334455667788
        write(device, offset, 0x99)
        assert read(device, offset, 8) == 0x99
        assert read(device, offset, 2) == 0xFFFF


def test_registers_have_names() -> None:
    device = Edu()
    names = {offset: device.register_name(BAR0, offset) for offset in range(0, 0x100, 4)}
    assert {offset: name for offset, name in names.items() if name} == {
        0x00: "identification", 0x04: "liveness", 0x08: "factorial", 0x20: "status", 0x24: "interrupt_status",
        0x60: "interrupt_raise", 0x64: "interrupt_acknowledge", 0x80: "dma_source", 0x84: "dma_source+4",
        0x88: "dma_destination", 0x8C: "dma_destination+4", 0x90: "dma_count", 0x94: "dma_count+4",
        0x98: "dma_command", 0x9C: "dma_command+4",
    }  # fmt: skip
    assert device.register_name(CONFIG, 0x42) == "msi_cap.control"
