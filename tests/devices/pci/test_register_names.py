"""Expected names and offsets are those of the PCI Local Bus Specification 3.0, chapter 6."""

from __future__ import annotations

import pytest

from devices.contract import Device
from devices.pci.config_space import ConfigSpace, PciIdentity
from devices.pci.function import Bar, MsixSpec, PciFunction
from devices.pci.register_names import array_names, config_register_name, name_in, structure_names
from devices.pci.registers import Register, RegisterBlock, Window, WindowMap
from examples.doorbell import Doorbell

BAR0, BAR1, BAR2, ROM, CONFIG, VGA = 0, 1, 2, 6, 7, 8
IDENTITY = PciIdentity(vendor=0x1234, device=0x5678, class_code=0xFF0000)

HEADER = {
    0x00: "vendor_id", 0x02: "device_id", 0x04: "command", 0x06: "status", 0x08: "revision_id", 0x09: "class_code",
    0x0C: "cache_line_size", 0x0D: "latency_timer", 0x0E: "header_type", 0x0F: "bist", 0x10: "bar0", 0x14: "bar1",
    0x18: "bar2", 0x1C: "bar3", 0x20: "bar4", 0x24: "bar5", 0x28: "cardbus_cis", 0x2C: "subsystem_vendor_id",
    0x2E: "subsystem_id", 0x30: "rom_base", 0x34: "capabilities", 0x3C: "interrupt_line", 0x3D: "interrupt_pin",
    0x3E: "min_gnt", 0x3F: "max_lat",
}  # fmt: skip


def block_of(*registers: tuple[int, int, str]) -> RegisterBlock:
    return RegisterBlock(16, [Register(at, width, lambda: 0, name=name) for at, width, name in registers])


@pytest.mark.parametrize(("offset", "name"), HEADER.items())
def test_a_register_of_the_header_has_the_specification_s_name(offset: int, name: str) -> None:
    assert config_register_name(offset) == name


def test_the_header_has_no_other_registers() -> None:
    names = {offset: config_register_name(offset) for offset in range(-8, 4096)}
    inside = {offset for offset, name in names.items() if name and "+" in name}
    assert {offset for offset, name in names.items() if name} - inside == set(HEADER)
    assert names[0x01] == "vendor_id+1"
    assert names[0x0B] == "class_code+2"
    assert names[0x27] == "bar5+3"
    reserved = range(0x35, 0x3C)
    assert [names[offset] for offset in (-1, *reserved, 0x40, 4095)] == [None] * 10


def test_a_name_is_that_of_the_structure_and_of_the_register_in_it() -> None:
    names = structure_names((("low", 2), ("", 2)))
    assert [name_in("block", offset, names) for offset in (0, 1, 2, 4)] == [
        "block.low", "block.low+1", "block+2", "block+4",
    ]  # fmt: skip
    assert [name_in("", offset, names) for offset in (0, 1, 2, 4)] == ["low", "low+1", None, None]
    assert [name_in("block", offset) for offset in (0, 1)] == ["block", "block+1"]


def test_elements_of_an_array_are_counted() -> None:
    assert [array_names("slot", 4)(offset) for offset in (0, 4, 11)] == ["slot[0]", "slot[1]", "slot[2]+3"]


def test_a_block_knows_the_names_of_its_registers() -> None:
    block = block_of((2, 4, "four"), (6, 2, "two"), (8, 1, ""), (15, 1, "last"))
    assert [block.register_name(offset) for offset in (-1, 0, 2, 5, 6, 8, 9, 15, 16)] == [
        None, None, "four", "four+3", "two", None, None, "last", None,
    ]  # fmt: skip


def test_a_region_knows_the_names_in_its_windows() -> None:
    block = block_of((0, 4, "first"))
    windows = [Window(32, 16, name="fifo"), Window(8, 16, register_name=block.register_name), Window(48, 4)]
    region = WindowMap(64, windows)
    assert [region.register_name(offset) for offset in (-1, 0, 8, 9, 12, 24, 32, 47, 48, 52, 64)] == [
        None, None, "first", "first+1", None, None, "fifo", "fifo+15", None, None, None,
    ]  # fmt: skip
    assert WindowMap(0, []).register_name(0) is None


def test_a_capability_with_names_has_them_behind_the_header() -> None:
    config = ConfigSpace(IDENTITY)
    config.add_capability(0x09, bytes(2))
    config.add_capability(0x10, bytes(3), name="express", register_name=structure_names((("id", 1),)))
    assert [config.register_name(offset) for offset in (0x43, 0x44, 0x45, 0x48, 0x49)] == [
        None, "express.id", "express+1", "express+4", None,
    ]  # fmt: skip
    assert config.register_name(0x04) == "command"


def test_msix_has_the_names_of_its_capability_its_table_and_its_pending_bits() -> None:
    function = PciFunction(IDENTITY, bars={}, msix=MsixSpec(vectors=65, bar=1))
    capability = [function.register_name(CONFIG, 0x40 + at) for at in (0, 1, 2, 3, 4, 8, 11, 12)]
    assert capability == [
        "msix_cap.id", "msix_cap.next", "msix_cap.control", "msix_cap.control+1", "msix_cap.table", "msix_cap.pba",
        "msix_cap.pba+3", None,
    ]  # fmt: skip
    assert [function.register_name(BAR1, 2 * 16 + at) for at in (0, 4, 8, 9, 12)] == [
        "msix.table[2].address", "msix.table[2].upper_address", "msix.table[2].data", "msix.table[2].data+1",
        "msix.table[2].vector_control",
    ]  # fmt: skip
    assert function.register_name(BAR1, 65 * 16 - 4) == "msix.table[64].vector_control"
    assert function.register_name(BAR1, 65 * 16) is None
    assert function.register_name(BAR1, 2048) == "msix.pba"
    assert function.register_name(BAR1, 2048 + 8) == "msix.pba+8"


def test_a_function_without_names_has_those_of_configuration_space() -> None:
    block = RegisterBlock(4, [Register(0, 4, lambda: 0)])
    function = PciFunction(IDENTITY, bars={0: Bar(4096, [Window(0, 4, block.read, block.write)])})
    assert function.register_name(BAR0, 0) is None
    assert function.register_name(CONFIG, 0x06) == "status"


def test_a_model_that_says_nothing_of_names_knows_none() -> None:
    assert Device.register_name(Doorbell(), BAR0, 0) is None


def test_what_is_not_there_has_no_name() -> None:
    function = Doorbell()
    assert [function.register_name(index, 0) for index in (-1, BAR2, ROM, VGA, 9, 1 << 64)] == [None] * 6
    for index in (BAR0, BAR1, CONFIG):
        assert [function.register_name(index, offset) for offset in (-1, 4096, 1 << 64)] == [None] * 3


def test_the_example_s_registers_have_names() -> None:
    names = [Doorbell().register_name(BAR0, offset) for offset in (0, 4, 8, 12, 16, 24, 28, 32)]
    assert names == ["ring", "count", "source", "source+4", "target", "length", "status", None]
