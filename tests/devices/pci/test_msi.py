"""Expected values are those of the PCI Local Bus Specification 3.0, section 6.8.1."""

from __future__ import annotations

import pytest

from devices.pci.config_space import PciIdentity
from devices.pci.constants import InterruptPin
from devices.pci.function import MsixSpec, PciFunction
from devices.testing import FakeHost

CONFIG, INTX, MSI, MSIX = 7, 0, 1, 2
CAPABILITY, CONTROL = 0x40, 0x42


class Plain(PciFunction):
    name = "plain"


def function_with(vectors: int, *, msix: bool = False) -> tuple[PciFunction, FakeHost]:
    function = Plain(
        PciIdentity(vendor=0x1234, device=0x5678, class_code=0xFF0000),
        bars={},
        msi_vectors=vectors,
        msix=MsixSpec(4, bar=1) if msix else None,
        interrupt_pin=InterruptPin.INTA,
    )
    function.connect(host := FakeHost())
    return function, host


def set_control(function: PciFunction, value: int) -> None:
    function.region_write(CONFIG, CONTROL, memoryview(value.to_bytes(2, "little")))


@pytest.mark.parametrize(
    ("vectors", "control"), [(1, 0x80), (2, 0x82), (4, 0x84), (8, 0x86), (16, 0x88), (32, 0x8A)]
)
def test_the_capability_asks_for_the_vectors_and_takes_64_bit_addresses(vectors: int, control: int) -> None:
    function, _ = function_with(vectors)
    assert function.region_read(CONFIG, 0x34, 1)[0] == CAPABILITY
    assert function.region_read(CONFIG, CAPABILITY, 14) == bytes((5, 0, control, 0)) + bytes(10)
    assert [irq.count for irq in function.irqs] == [1, vectors, 0, 1, 1]


@pytest.mark.parametrize("vectors", [-1, 3, 33, 64])
def test_other_numbers_of_vectors_are_refused(vectors: int) -> None:
    with pytest.raises(ValueError, match="MSI has"):
        function_with(vectors)


def test_software_writes_enable_the_number_of_vectors_and_the_message() -> None:
    function, _ = function_with(4)
    function.region_write(CONFIG, CAPABILITY, memoryview(b"\xff" * 14))
    assert function.region_read(CONFIG, CAPABILITY, 14) == (
        bytes((5, 0, 0xF5, 0)) + b"\xfc\xff\xff\xff" + b"\xff" * 6
    )
    assert function.region_read(CONFIG, CAPABILITY + 14, 2) == bytes(2)


def test_a_vector_interrupts_only_while_msi_is_on() -> None:
    function, host = function_with(1)
    function.raise_msi(0)
    set_control(function, 0x01)
    function.raise_msi(0)
    function.raise_msi(1)
    function.raise_msi(-1)
    set_control(function, 0x00)
    function.raise_msi(0)
    assert host.interrupts == [(MSI, 0)]


@pytest.mark.parametrize(
    ("control", "raised"),
    [(0x01, [0, 0, 0, 0]), (0x11, [0, 1, 0, 1]), (0x21, [0, 1, 2, 3]), (0x71, [0, 1, 2, 3])],
)
def test_vectors_share_what_software_has_allocated(control: int, raised: list[int]) -> None:
    function, host = function_with(4)
    set_control(function, control)
    for vector in range(4):
        function.raise_msi(vector)
    assert host.interrupts == [(MSI, vector) for vector in raised]


def test_the_line_is_silent_while_msi_is_on() -> None:
    function, host = function_with(1)
    set_control(function, 0x01)
    function.set_intx(True)
    assert host.interrupts == []
    set_control(function, 0x00)
    function.set_intx(True)
    assert host.interrupts == [(INTX, 0)]


def test_msi_and_msix_are_capabilities_of_one_function() -> None:
    function, host = function_with(1, msix=True)
    assert function.region_read(CONFIG, CAPABILITY, 2) == b"\5\x50"
    assert function.region_read(CONFIG, 0x50, 2) == b"\x11\0"
    function.region_write(CONFIG, 0x52, memoryview(b"\0\x80"))
    function.raise_msi(0)
    function.raise_msix(3)
    assert host.interrupts == [(MSIX, 3)]


def test_a_reset_switches_msi_off() -> None:
    function, host = function_with(1)
    set_control(function, 0x01)
    function.reset()
    function.raise_msi(0)
    assert host.interrupts == []


def test_a_function_without_msi_or_without_a_host_raises_nothing() -> None:
    function, host = function_with(0)
    function.raise_msi(0)
    assert function.irqs[MSI].count == 0
    assert host.interrupts == []
    function, host = function_with(1)
    set_control(function, 0x01)
    function.disconnect()
    function.raise_msi(0)
    assert host.interrupts == []


def test_its_registers_have_names() -> None:
    function, _ = function_with(1)
    names = [function.register_name(CONFIG, CAPABILITY + at) for at in (0, 1, 2, 3, 4, 8, 12, 14)]
    assert names == [
        "msi_cap.id", "msi_cap.next", "msi_cap.control", "msi_cap.control+1", "msi_cap.address",
        "msi_cap.upper_address", "msi_cap.data", None,
    ]  # fmt: skip
