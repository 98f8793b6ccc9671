"""The virtio PCI transport as a driver sees it (virtio 1.3, section 4.1)."""

from __future__ import annotations

import pytest

from devices.testing import FakeHost
from devices.virtio.pci import VirtioPci
from tests.devices.virtio.driver import (
    COMMON_CFG,
    CONFIG,
    DEVICE_CFG,
    ISR_CFG,
    NO_VECTOR,
    NOTIFY_CFG,
    PCI_CFG,
    VirtioDriver,
)
from tests.devices.virtio.echo import EchoDevice

VERSION_1, ACCESS_PLATFORM = 1 << 32, 1 << 33
ECHO_FEATURE = 1 << 1
DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0, 4, 8, 12
CONFIG_VECTOR, NUM_QUEUES, STATUS, GENERATION = 16, 18, 20, 21
QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 22, 24, 26, 28, 30
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 32, 40, 48
INTX, MSIX = 0, 2
BAR4 = 4


@pytest.fixture
def device() -> EchoDevice:
    return EchoDevice()


@pytest.fixture
def pci(device: EchoDevice) -> VirtioPci:
    return VirtioPci(device)


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def driver(pci: VirtioPci, host: FakeHost) -> VirtioDriver:
    return VirtioDriver(pci, host)


def access_window(driver: VirtioDriver, bar: int, offset: int, width: int) -> int:
    """Point the access capability somewhere; gives the offset of its data."""
    at = driver.structures[PCI_CFG].at
    driver.write(CONFIG, at + 4, 1, bar)
    driver.write(CONFIG, at + 8, 4, offset)
    driver.write(CONFIG, at + 12, 4, width)
    return at + 16


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("features", [None, VERSION_1 | 1 << 28])
@pytest.mark.parametrize("msix", [True, False])
def test_a_buffer_goes_to_the_device_and_its_reply_comes_back(
    pci: VirtioPci, shared: bool, indirect: bool, features: int | None, msix: bool
) -> None:
    host = FakeHost(shared=shared)
    driver = VirtioDriver(pci, host, features=features, indirect=indirect, msix=msix).start()
    assert driver.send(0, [b"hello ", b"world"], [4, 100]) == [b"dlro", b"w olleh"]
    assert driver.send(1, [b"again"], [5]) == [b"niaga"]
    assert host.interrupts == ([(MSIX, 1), (MSIX, 2)] if msix else [(INTX, 0)] * 2)


def test_guest_memory_high_in_the_address_space_works(pci: VirtioPci) -> None:
    driver = VirtioDriver(pci, FakeHost(memory_base=0xFF_1234_0000)).start()
    assert driver.send(0, [b"high"], [4]) == [b"hgih"]


def test_a_smaller_queue_than_offered_works(pci: VirtioPci) -> None:
    driver = VirtioDriver(pci, FakeHost(), queue_size=2).start()
    for _ in range(5):
        assert driver.send(0, [b"ab"], [2]) == [b"ba"]


def test_it_is_a_modern_virtio_device(driver: VirtioDriver) -> None:
    assert driver.read(CONFIG, 0, 4) == (0x1040 + 42) << 16 | 0x1AF4
    assert driver.read(CONFIG, 8, 4) == 0xFF0000 << 8 | 1
    assert driver.read(CONFIG, 0x2C, 4) == (0x1040 + 42) << 16 | 0x1AF4
    assert driver.read(CONFIG, 0x3D, 1) == 1


def test_every_structure_has_a_page_of_bar_4(pci: VirtioPci, driver: VirtioDriver) -> None:
    assert driver.structures.keys() == {COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG}
    pages = set()
    for kind in (COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG):
        structure = driver.structures[kind]
        assert structure.bar == BAR4
        assert structure.offset + structure.length <= pci.regions[BAR4].size == 16384
        pages.add(structure.offset // 4096)
    assert len(pages) == 4
    assert driver.structures[COMMON_CFG].length == 56
    assert driver.read(CONFIG, 0x20, 4) & 0xF == 0xC


def test_there_is_a_vector_for_each_queue_and_one_for_the_configuration(pci: VirtioPci) -> None:
    assert pci.irqs[MSIX].count == 3


def test_features_of_device_transport_and_rings_are_offered(driver: VirtioDriver) -> None:
    assert driver.offered() == ECHO_FEATURE | 1 << 28 | 1 << 29 | VERSION_1 | ACCESS_PLATFORM
    driver.write_common(DEVICE_FEATURE_SELECT, 4, 2)
    assert driver.read_common(DEVICE_FEATURE, 4) == 0


def test_the_device_is_activated_with_what_was_negotiated(device: EchoDevice, driver: VirtioDriver) -> None:
    driver.wanted = VERSION_1 | ECHO_FEATURE
    driver.start()
    assert device.activated == [VERSION_1 | ECHO_FEATURE]


@pytest.mark.parametrize("features", [0, ECHO_FEATURE, VERSION_1 | 1 << 5, VERSION_1 | 1 << 63])
def test_features_that_cannot_work_are_not_accepted(driver: VirtioDriver, features: int) -> None:
    driver.status = 3
    driver.accept(features)
    driver.status = 11
    assert driver.status == 3
    driver.status = 15
    assert driver.status == 3


def test_features_are_fixed_once_accepted(driver: VirtioDriver) -> None:
    driver.status = 3
    driver.accept(VERSION_1)
    driver.status = 11
    driver.accept(VERSION_1 | ECHO_FEATURE)
    driver.write_common(DRIVER_FEATURE_SELECT, 4, 0)
    assert driver.read_common(DRIVER_FEATURE, 4) == 0
    driver.write_common(DRIVER_FEATURE_SELECT, 4, 1)
    assert driver.read_common(DRIVER_FEATURE, 4) == 1
    driver.write_common(DRIVER_FEATURE_SELECT, 4, 2)
    assert driver.read_common(DRIVER_FEATURE, 4) == 0


def test_the_driver_cannot_ask_for_the_device_s_own_status_bit(driver: VirtioDriver) -> None:
    driver.status = 1 | 64 | 32
    assert driver.status == 1


def test_status_bits_stay_until_the_reset(driver: VirtioDriver) -> None:
    driver.status = 3
    driver.status = 1
    assert driver.status == 3
    driver.status = 128
    assert driver.status == 131


def test_writing_0_to_the_status_resets_everything(
    device: EchoDevice, driver: VirtioDriver, host: FakeHost
) -> None:
    driver.start()
    driver.send(0, [b"x"], [1])
    driver.status = 0
    assert driver.status == 0
    assert device.resets == 2
    assert host.memory.pins == []
    assert driver.read_common(CONFIG_VECTOR, 2) == NO_VECTOR
    driver.write_common(QUEUE_SELECT, 2, 0)
    assert driver.read_common(QUEUE_ENABLE, 2) == 0
    assert driver.read_common(QUEUE_SIZE, 2) == 8
    assert driver.read_common(QUEUE_DESC, 8) == 0
    assert driver.start().send(0, [b"ab"], [2]) == [b"ba"]


def test_a_function_reset_resets_virtio_too(
    pci: VirtioPci, device: EchoDevice, driver: VirtioDriver, host: FakeHost
) -> None:
    driver.start()
    driver.send(0, [b"x"], [1])
    pci.reset()
    assert driver.status == 0
    assert host.memory.pins == []
    assert driver.read(CONFIG, 4, 2) == 0
    driver.rings[0].available_index = 0
    driver.kick(0)
    assert len(device.handled) == 1


def test_queues_are_described_one_at_a_time(driver: VirtioDriver) -> None:
    assert driver.read_common(NUM_QUEUES, 2) == 2
    for queue, size in ((0, 8), (1, 4)):
        driver.write_common(QUEUE_SELECT, 2, queue)
        assert driver.read_common(QUEUE_SELECT, 2) == queue
        assert driver.read_common(QUEUE_SIZE, 2) == size
        assert driver.read_common(QUEUE_NOTIFY_OFF, 2) == queue
        assert driver.read_common(QUEUE_VECTOR, 2) == NO_VECTOR


def test_a_queue_that_does_not_exist_has_size_0(driver: VirtioDriver) -> None:
    driver.write_common(QUEUE_SELECT, 2, 2)
    driver.write_common(QUEUE_SIZE, 2, 8)
    driver.write_common(QUEUE_DESC, 4, 0x1000)
    driver.write_common(QUEUE_DESC + 4, 4, 0x1000)
    driver.write_common(QUEUE_VECTOR, 2, 1)
    driver.write_common(QUEUE_ENABLE, 2, 1)
    for offset, count in ((QUEUE_SIZE, 2), (QUEUE_ENABLE, 2), (QUEUE_NOTIFY_OFF, 2), (QUEUE_DESC, 8)):
        assert driver.read_common(offset, count) == 0


@pytest.mark.parametrize("size", [0, 3, 16, 0xFFFF])
def test_a_queue_size_that_cannot_be_is_ignored(driver: VirtioDriver, size: int) -> None:
    driver.write_common(QUEUE_SIZE, 2, size)
    assert driver.read_common(QUEUE_SIZE, 2) == 8


def test_queue_addresses_have_64_bits_in_any_halves(driver: VirtioDriver) -> None:
    for register in (QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE):
        driver.write_common(register + 4, 4, 0x89ABCDEF)
        driver.write_common(register, 4, 0x01234567)
        assert driver.read_common(register, 8) == 0x89ABCDEF01234567
        driver.write_common(register, 8, 0xFEDCBA9876543210)
        assert driver.read_common(register, 4) == 0x76543210
        assert driver.read_common(register + 4, 4) == 0xFEDCBA98


def test_an_enabled_queue_keeps_its_configuration(driver: VirtioDriver) -> None:
    driver.write_common(QUEUE_ENABLE, 2, 0)
    assert driver.read_common(QUEUE_ENABLE, 2) == 0
    driver.write_common(QUEUE_ENABLE, 2, 1)
    driver.write_common(QUEUE_SIZE, 2, 4)
    driver.write_common(QUEUE_DESC, 4, 0x1000)
    driver.write_common(QUEUE_ENABLE, 2, 0)
    assert driver.read_common(QUEUE_ENABLE, 2) == 1
    assert driver.read_common(QUEUE_SIZE, 2) == 8
    assert driver.read_common(QUEUE_DESC, 4) == 0


@pytest.mark.parametrize("register", [CONFIG_VECTOR, QUEUE_VECTOR])
def test_a_vector_that_does_not_exist_reads_back_as_none(driver: VirtioDriver, register: int) -> None:
    driver.write_common(register, 2, 2)
    assert driver.read_common(register, 2) == 2
    driver.write_common(register, 2, 3)
    assert driver.read_common(register, 2) == NO_VECTOR


def test_a_queue_without_a_vector_does_not_interrupt(driver: VirtioDriver, host: FakeHost) -> None:
    driver.start()
    driver.write_common(QUEUE_SELECT, 2, 0)
    driver.write_common(QUEUE_VECTOR, 2, NO_VECTOR)
    assert driver.send(0, [b"ab"], [2]) == [b"ba"]
    assert host.interrupts == []


def test_a_configuration_change_counts_and_interrupts(pci: VirtioPci, host: FakeHost) -> None:
    driver = VirtioDriver(pci, host).start()
    before = driver.read_common(GENERATION, 1)
    pci.config_changed()
    assert driver.read_common(GENERATION, 1) == before + 1
    assert host.interrupts == [(MSIX, 0)]
    assert driver.read_isr() == 2


def test_the_generation_wraps(pci: VirtioPci, driver: VirtioDriver) -> None:
    for _ in range(257):
        pci.config_changed()
    assert driver.read_common(GENERATION, 1) == 1


def test_a_configuration_change_before_the_driver_is_ready_does_not_interrupt(
    pci: VirtioPci, driver: VirtioDriver, host: FakeHost
) -> None:
    pci.config_changed()
    assert host.interrupts == []
    assert driver.read_isr() == 0


def test_a_configuration_change_while_no_client_is_attached_is_kept(
    pci: VirtioPci, driver: VirtioDriver
) -> None:
    driver.start()
    pci.disconnect()
    pci.config_changed()
    assert driver.read_common(GENERATION, 1) == 1


def test_without_msix_the_isr_says_why_and_reading_it_clears_it(pci: VirtioPci, host: FakeHost) -> None:
    driver = VirtioDriver(pci, host, msix=False).start()
    driver.send(0, [b"ab"], [2])
    pci.config_changed()
    assert host.interrupts == [(INTX, 0)] * 2
    assert driver.read(CONFIG, 6, 2) & 8
    assert driver.read_isr() == 3
    assert driver.read_isr() == 0
    assert not driver.read(CONFIG, 6, 2) & 8


def test_the_isr_is_one_byte(pci: VirtioPci, host: FakeHost) -> None:
    driver = VirtioDriver(pci, host, msix=False).start()
    pci.config_changed()
    isr = driver.structures[ISR_CFG].offset
    assert driver.read(BAR4, isr + 1, 1) == 0
    assert driver.read(BAR4, isr, 4) == 2
    assert driver.read(BAR4, isr, 1) == 0


def test_the_device_s_configuration_is_its_own(device: EchoDevice, driver: VirtioDriver) -> None:
    assert driver.config_read(0, 4) == b"conf"
    driver.config_write(4, b"URED")
    assert device.config == b"confUREDation!\0\0"
    assert driver.config_read(4000, 8) == bytes(8)


def test_the_access_capability_reads_a_bar(driver: VirtioDriver) -> None:
    data = access_window(driver, BAR4, driver.structures[DEVICE_CFG].offset, 4)
    assert driver.read(CONFIG, data, 4) == int.from_bytes(b"conf", "little")
    data = access_window(driver, BAR4, driver.structures[DEVICE_CFG].offset + 2, 1)
    assert driver.read(CONFIG, data, 1) == ord("n")


def test_the_access_capability_writes_a_bar(driver: VirtioDriver) -> None:
    data = access_window(driver, BAR4, driver.structures[COMMON_CFG].offset + STATUS, 1)
    driver.write(CONFIG, data, 4, 1)
    assert driver.status == 1


def test_a_kick_through_the_access_capability_works(device: EchoDevice, driver: VirtioDriver) -> None:
    driver.start()
    driver.make_available(0, driver.describe(0, [(driver.store(b"x"), 1)], []))
    data = access_window(driver, BAR4, driver.rings[0].notify, 2)
    driver.write(CONFIG, data, 2, 0)
    assert len(device.handled) == 1


@pytest.mark.parametrize(
    ("bar", "offset", "width"),
    [
        (6, 0, 4),
        (7, 0, 4),
        (255, 0, 4),
        (2, 0, 4),
        (4, 16384, 4),
        (4, 2, 4),
        (4, 0xFFFFFFFC, 4),
        (4, 0, 0),
        (4, 0, 8),
    ],
)
def test_the_access_capability_reaches_nothing_else(
    driver: VirtioDriver, bar: int, offset: int, width: int
) -> None:
    data = access_window(driver, bar, offset, width)
    driver.write(CONFIG, data, 4, 0xA5A5A5A5)
    assert driver.read(CONFIG, data, 4) == 0xA5A5A5A5
    assert driver.status == 0


def test_the_status_shows_what_was_served(pci: VirtioPci, driver: VirtioDriver) -> None:
    driver.start()
    driver.send(1, [b"ab"], [2])
    assert pci.status() == {
        "driver_ok": True,
        "needs_reset": False,
        "features": "0x330000002",
        "buffers": [0, 1],
        "interrupts": [0, 1],
        "echoed": 1,
    }
