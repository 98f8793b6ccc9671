"""The doorbell of examples/, hosted by a bytearray."""

import struct

from devices.pci.constants import ConfigRegister
from devices.testing import FakeHost
from examples.doorbell import COPIED, RUNG, Doorbell, Status
from protocol import PciIrq, PciRegion

BAR0, CONFIG = PciRegion.BAR0, PciRegion.CONFIG
BUS_MASTER_AND_MEMORY = b"\x06\x00"
MSIX_CONTROL, MSIX_ENABLE = 0x42, b"\x00\x80"
"""MSI-X is the only capability, so it is the first one, at 0x40."""


def plugged_in(host: FakeHost) -> Doorbell:
    """A doorbell on ``host``, set up as a guest's driver does it."""
    device = Doorbell()
    device.connect(host)
    device.region_write(CONFIG, ConfigRegister.COMMAND, memoryview(BUS_MASTER_AND_MEMORY))
    device.region_write(CONFIG, MSIX_CONTROL, memoryview(MSIX_ENABLE))
    return device


def test_a_ring_interrupts_and_is_counted() -> None:
    device = plugged_in(host := FakeHost())
    device.region_write(BAR0, 0x00, memoryview(b"\x01\x00\x00\x00"))
    assert host.interrupts == [(PciIrq.MSIX, RUNG)]
    assert device.region_read(BAR0, 0x04, 4) == b"\x01\x00\x00\x00"


def test_a_copy_moves_guest_memory() -> None:
    device = plugged_in(host := FakeHost(memory_size=0x4000))
    host.memory.data[0x1000:0x1005] = b"hello"
    device.region_write(BAR0, 0x08, memoryview(struct.pack("<QQ", 0x1000, 0x3000)))
    device.region_write(BAR0, 0x18, memoryview(struct.pack("<I", 5)))
    assert host.memory.data[0x3000:0x3005] == b"hello"
    assert host.interrupts == [(PciIrq.MSIX, COPIED)]
    assert device.region_read(BAR0, 0x1C, 4) == struct.pack("<I", Status.DONE)
