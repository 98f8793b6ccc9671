"""A virtio PCI function without MSI-X: its interrupts are INTA# (virtio 1.3, 4.1.4.5, 4.1.5.1.2)."""

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

INTX, MSIX = 0, 2
MSIX_CAPABILITY = 0x11
BAR1_REGISTER = 0x14
CONFIG_VECTOR, QUEUE_VECTOR = 16, 26


@pytest.fixture
def device() -> EchoDevice:
    return EchoDevice()


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def driver(device: EchoDevice, host: FakeHost) -> VirtioDriver:
    return VirtioDriver(VirtioPci(device, msix=False), host, msix=False)


def test_a_function_may_have_no_msix_at_all(driver: VirtioDriver) -> None:
    pci = driver.device
    assert MSIX_CAPABILITY not in [kind for _, kind in driver.capabilities()]
    assert driver.structures.keys() == {COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG}
    assert (pci.irqs[INTX].count, pci.irqs[MSIX].count) == (1, 0)
    assert [region.size for region in pci.regions[:6]] == [0, 0, 0, 0, 16384, 0]
    assert driver.read(CONFIG, BAR1_REGISTER, 4) == 0


def test_a_function_without_msix_interrupts_by_its_line(
    device: EchoDevice, driver: VirtioDriver, host: FakeHost
) -> None:
    driver.start()
    assert driver.send(0, [b"hello"], [5]) == [b"olleh"]
    assert driver.read_isr() == 1
    device.transport.config_changed()
    assert driver.read_isr() == 2
    assert host.interrupts == [(INTX, 0)] * 2


def test_a_function_without_msix_has_no_vector_that_a_driver_could_name(driver: VirtioDriver) -> None:
    for register in (CONFIG_VECTOR, QUEUE_VECTOR):
        for vector in (0, 1, 0xFFFE):
            driver.write_common(register, 2, vector)
            assert driver.read_common(register, 2) == NO_VECTOR
