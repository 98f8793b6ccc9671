from __future__ import annotations

import pytest

from devices.contract import Irq, RegionAccess
from devices.pci.config_space import PciIdentity
from devices.pci.constants import InterruptPin
from devices.pci.function import Bar, MsixSpec, PciFunction
from devices.pci.registers import Register, RegisterBlock, Window
from devices.testing import FakeHost

CONFIG, INTX, MSIX = 7, 0, 2
COMMAND, STATUS = 4, 6


class Counter(PciFunction):
    """Counts the writes to its one register."""

    name = "counter"

    def __init__(self, *, vectors: int = 3, pin: InterruptPin = InterruptPin.INTA) -> None:
        self.count = 0
        self.bus_master_changes: list[bool] = []
        block = RegisterBlock(4, [Register(0, 4, lambda: self.count, self.add)])
        super().__init__(
            PciIdentity(vendor=0x1234, device=0x5678, class_code=0xFF0000),
            bars={0: Bar(4096, [Window(0x10, 4, block.read, block.write)])},
            msix=MsixSpec(vectors, bar=1) if vectors else None,
            interrupt_pin=pin,
        )

    def add(self, value: int) -> None:
        self.count = (self.count + value) & 0xFFFFFFFF

    def function_reset(self) -> None:
        self.count = 0

    def bus_master_changed(self) -> None:
        self.bus_master_changes.append(self.bus_master)


def write(function: PciFunction, region: int, offset: int, data: bytes) -> None:
    function.region_write(region, offset, memoryview(data))


def connected(function: PciFunction) -> FakeHost:
    host = FakeHost()
    function.connect(host)
    return host


def msix_capability(function: PciFunction) -> int:
    at = function.region_read(CONFIG, 0x34, 1)[0]
    while function.region_read(CONFIG, at, 1) != b"\x11":
        at = function.region_read(CONFIG, at + 1, 1)[0]
        assert at
    return at


def enable_msix(function: PciFunction, control: int = 0x8000) -> None:
    write(function, CONFIG, msix_capability(function) + 2, control.to_bytes(2, "little"))


def test_it_has_the_nine_regions_of_a_vfio_pci_device() -> None:
    regions = Counter().regions
    assert [region.name for region in regions] == [
        "BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA",
    ]  # fmt: skip
    assert [region.size for region in regions] == [4096, 4096, 0, 0, 0, 0, 0, 256, 0]
    assert regions[0].access == RegionAccess.READ | RegionAccess.WRITE
    assert regions[2].access == RegionAccess.NONE


def test_it_has_the_five_interrupts_of_a_vfio_pci_device() -> None:
    assert Counter().irqs == (
        Irq("INTX", 1, maskable=True, automasked=True),
        Irq("MSI"),
        Irq("MSIX", 3),
        Irq("ERR", 1),
        Irq("REQ", 1),
    )
    assert [irq.count for irq in Counter(vectors=0, pin=InterruptPin.NONE).irqs] == [0, 0, 0, 1, 1]


def test_registers_in_a_bar_are_dispatched() -> None:
    function = Counter()
    write(function, 0, 0x10, b"\5\0\0\0")
    assert function.region_read(0, 0x10, 4) == b"\5\0\0\0"
    assert function.region_read(0, 0x14, 4) == bytes(4)


def test_a_region_without_anything_in_it_reads_zeros() -> None:
    function = Counter()
    write(function, 6, 0, b"\1")
    assert function.region_read(8, 0, 4) == bytes(4)


def test_bars_that_collide_are_refused() -> None:
    identity = PciIdentity(1, 2, 3)
    for bars, msix in (
        ({0: Bar(4096, is_64bit=True), 1: Bar(4096)}, None),
        ({5: Bar(4096, is_64bit=True)}, None),
        ({6: Bar(4096)}, None),
        ({1: Bar(4096)}, MsixSpec(1, 1)),
    ):
        with pytest.raises(ValueError, match="BAR"):
            PciFunction(identity, bars=bars, msix=msix)


def test_the_command_register_switches_bus_mastering() -> None:
    function = Counter()
    write(function, CONFIG, COMMAND, b"\6\0")
    assert function.bus_master
    write(function, CONFIG, COMMAND, b"\7")
    write(function, CONFIG, COMMAND + 1, b"\0")
    write(function, CONFIG, COMMAND, b"\2\0")
    assert not function.bus_master
    assert function.bus_master_changes == [True, False]


def test_reset_returns_to_power_on() -> None:
    function = Counter()
    fresh = function.region_read(CONFIG, 0, 256)
    write(function, CONFIG, COMMAND, b"\6\0")
    write(function, 0, 0x10, b"\5\0\0\0")
    enable_msix(function)
    function.reset()
    assert function.region_read(CONFIG, 0, 256) == fresh
    assert (function.count, function.bus_master) == (0, False)
    host = connected(function)
    function.raise_msix(0)
    assert host.interrupts == []


def test_there_is_no_host_before_a_connection_or_after_it() -> None:
    function = Counter()
    function.set_intx(True)
    host = connected(function)
    assert function.host is host
    function.disconnect()
    enable_msix(function)
    function.raise_msix(0)
    with pytest.raises(RuntimeError, match="no host"):
        _ = function.host


def test_the_line_interrupts_and_shows_in_the_status_register() -> None:
    function = Counter()
    host = connected(function)
    function.set_intx(True)
    assert host.interrupts == [(INTX, 0)]
    assert function.region_read(CONFIG, STATUS, 1)[0] & 8
    function.set_intx(False)
    assert host.interrupts == [(INTX, 0)]
    assert not function.region_read(CONFIG, STATUS, 1)[0] & 8


def test_a_disabled_line_interrupts_once_it_is_enabled() -> None:
    function = Counter()
    host = connected(function)
    write(function, CONFIG, COMMAND, b"\0\4")
    function.set_intx(True)
    assert host.interrupts == []
    write(function, CONFIG, COMMAND, b"\0\0")
    assert host.interrupts == [(INTX, 0)]


def test_the_line_is_silent_while_msix_is_on() -> None:
    function = Counter()
    host = connected(function)
    enable_msix(function)
    function.set_intx(True)
    assert host.interrupts == []


def test_msix_interrupts_only_while_enabled() -> None:
    function = Counter()
    host = connected(function)
    function.raise_msix(1)
    enable_msix(function)
    function.raise_msix(2)
    function.raise_msix(3)
    assert host.interrupts == [(MSIX, 2)]


def test_the_msix_capability_describes_table_and_pending_bits() -> None:
    function = Counter()
    at = msix_capability(function)
    assert function.region_read(CONFIG, at + 2, 10) == b"\2\0" + b"\1\0\0\0" + b"\1\x08\0\0"


def test_masked_interrupts_stay_pending_until_the_function_is_unmasked() -> None:
    function = Counter(vectors=70)
    host = connected(function)
    enable_msix(function, 0xC000)
    function.raise_msix(1)
    function.raise_msix(69)
    function.raise_msix(1)
    assert host.interrupts == []
    assert function.region_read(1, 2048, 16) == (1 << 1 | 1 << 69).to_bytes(16, "little")
    enable_msix(function)
    assert host.interrupts == [(MSIX, 1), (MSIX, 69)]
    assert function.region_read(1, 2048, 16) == bytes(16)


def test_pending_bits_are_read_only() -> None:
    function = Counter()
    write(function, 1, 2048, b"\xff")
    assert function.region_read(1, 2048, 8) == bytes(8)


def test_the_msix_table_is_memory_whose_vectors_start_masked() -> None:
    function = Counter()
    assert function.region_read(1, 0, 48) == (bytes(12) + b"\1\0\0\0") * 3
    write(function, 1, 16, b"\0\0\xe0\xfe")
    assert function.region_read(1, 16, 4) == b"\0\0\xe0\xfe"
    function.reset()
    assert function.region_read(1, 16, 4) == bytes(4)


@pytest.mark.parametrize(
    ("vectors", "size", "pending"), [(128, 4096, 2048), (129, 8192, 4096), (2048, 65536, 32768)]
)
def test_the_msix_bar_grows_with_the_vectors(vectors: int, size: int, pending: int) -> None:
    function = Counter(vectors=vectors)
    assert function.regions[1].size == size
    at = msix_capability(function)
    assert int.from_bytes(function.region_read(CONFIG, at + 8, 4), "little") == pending | 1


def test_more_vectors_than_msix_has_are_refused() -> None:
    with pytest.raises(ValueError, match="2048"):
        Counter(vectors=2049)


def test_every_access_width_works_everywhere() -> None:
    function = Counter()
    connected(function)
    for region in range(9):
        for count in (1, 2, 3, 4, 5, 7, 8, 16):
            for offset in (0, 1, 0x0F, 0x11, 0x34, 0x40, 0xF0):
                assert len(function.region_read(region, offset, count)) == count
                write(function, region, offset, b"\xff" * count)
