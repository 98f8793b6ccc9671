"""What the doorbell withstands: a guest that asks for what cannot be, and memory that is not shared."""

import struct

import pytest

from devices.pci.constants import ConfigRegister
from devices.testing import FakeHost
from devices.work import ReadMessage, Work
from examples.doorbell import COPIED, MAX_COPY, RUNG, Doorbell, Status
from protocol import PciIrq, PciRegion
from tests.docs.test_doorbell import plugged_in

BAR0, CONFIG = PciRegion.BAR0, PciRegion.CONFIG


def ask_for_copy(device: Doorbell, source: int, target: int, length: int) -> None:
    device.region_write(BAR0, 0x08, memoryview(struct.pack("<QQ", source, target)))
    device.region_write(BAR0, 0x18, memoryview(struct.pack("<I", length)))


def status(device: Doorbell) -> int:
    return int.from_bytes(device.region_read(BAR0, 0x1C, 4), "little")


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [(0xFFFF_FFFF_FFFF_F000, 0, 8), (0, 0x10_0000, 1), (0, 0, MAX_COPY + 1), (0, 0x1000, 0xFFFF_FFFF)],
)
def test_a_copy_that_cannot_be_fails_and_says_so(source: int, target: int, length: int) -> None:
    host = FakeHost(memory_size=0x10_0000)
    device = plugged_in(host)
    ask_for_copy(device, source, target, length)
    assert status(device) == Status.FAILED
    assert host.interrupts == [(PciIrq.MSIX, COPIED)]
    assert not any(host.memory.data)


def test_a_function_that_is_not_bus_master_copies_nothing() -> None:
    host = FakeHost()
    host.memory.data[0] = 1
    device = plugged_in(host)
    device.region_write(CONFIG, ConfigRegister.COMMAND, memoryview(b"\x02\x00"))
    ask_for_copy(device, 0, 0x1000, 1)
    assert status(device) == Status.FAILED
    assert host.memory.data[0x1000] == 0


def test_a_copy_goes_by_message_where_memory_is_not_shared() -> None:
    host = FakeHost(shared=False)
    host.memory.data[:3] = b"abc"
    device = plugged_in(host)
    ask_for_copy(device, 0, 0x1000, 3)
    assert status(device) == Status.DONE
    assert host.memory.data[0x1000:0x1003] == b"abc"


def test_a_copy_that_outlives_a_reset_writes_nothing_and_says_nothing() -> None:
    host = FakeHost(shared=False)
    device = plugged_in(host)
    copy = device._copy(0, 0x1000, 3, device._generation)
    assert copy.send(None) == ReadMessage(0, 3)
    device.reset()
    with pytest.raises(StopIteration):
        copy.send(b"abc")
    assert status(device) == Status.IDLE
    assert host.interrupts == []


class LeavingHost(FakeHost):
    """A host whose client leaves before any work has begun."""

    def defer(self, work: Work) -> None:
        work.close()


def test_a_copy_that_never_began_leaves_the_doorbell_to_the_next_client() -> None:
    device = plugged_in(leaving := LeavingHost())
    device.region_write(BAR0, 0, memoryview(bytes(4)))
    ask_for_copy(device, 0, 0x1000, 3)
    device.disconnect()
    device.connect(host := FakeHost())
    assert (status(device), leaving.interrupts) == (Status.FAILED, [(PciIrq.MSIX, RUNG)])
    assert device.region_read(BAR0, 0x04, 4) == b"\x01\0\0\0"
    host.memory.data[:3] = b"abc"
    ask_for_copy(device, 0, 0x1000, 3)
    assert status(device) == Status.DONE
    assert host.memory.data[0x1000:0x1003] == b"abc"


def test_a_copy_that_outlives_its_client_writes_nothing_and_says_nothing() -> None:
    device = plugged_in(FakeHost(shared=False))
    copy = device._copy(0, 0x1000, 3, device._generation)
    assert copy.send(None) == ReadMessage(0, 3)
    device.disconnect()
    device.connect(host := FakeHost(shared=False))
    with pytest.raises(StopIteration):
        copy.send(b"abc")
    assert host.interrupts == []


def test_a_copy_that_outlives_bus_mastering_fails() -> None:
    host = FakeHost(shared=False)
    device = plugged_in(host)
    copy = device._copy(0, 0x1000, 3, device._generation)
    copy.send(None)
    device.region_write(CONFIG, ConfigRegister.COMMAND, memoryview(b"\x02\x00"))
    with pytest.raises(StopIteration):
        copy.send(b"abc")
    assert status(device) == Status.FAILED


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 64])
def test_odd_accesses_are_harmless(width: int) -> None:
    device = plugged_in(FakeHost())
    for offset in range(0, 0x40, width):
        device.region_write(BAR0, offset, memoryview(b"\xff" * width))
        assert len(device.region_read(BAR0, offset, width)) == width
    assert device.region_read(BAR0, 0x20, 0x20) == bytes(0x20)


def test_a_reset_forgets_rings_and_addresses() -> None:
    host = FakeHost()
    device = plugged_in(host)
    device.region_write(BAR0, 0, memoryview(bytes(4)))
    ask_for_copy(device, 0x10, 0x20, 4)
    device.reset()
    assert device.region_read(BAR0, 0, 0x20) == bytes(0x20)
