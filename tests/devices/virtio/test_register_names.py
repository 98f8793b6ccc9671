"""Expected names and offsets are those of virtio 1.3, sections 4.1.4 and 5.7.4."""

from __future__ import annotations

import pytest

from devices.testing import FakeHost
from devices.virtio.pci import VirtioPci
from devices.virtio_gpu import VirtioGpu
from tests.devices.virtio.driver import (
    COMMON_CFG,
    CONFIG,
    DEVICE_CFG,
    ISR_CFG,
    NOTIFY_CFG,
    PCI_CFG,
    Structure,
    VirtioDriver,
)
from tests.devices.virtio.echo import EchoDevice

NOTIFY_OFF_MULTIPLIER = 16

COMMON = {
    0: "device_feature_select", 4: "device_feature", 8: "driver_feature_select", 12: "driver_feature",
    16: "config_msix_vector", 18: "num_queues", 20: "device_status", 21: "config_generation", 22: "queue_select",
    24: "queue_size", 26: "queue_msix_vector", 28: "queue_enable", 30: "queue_notify_off", 32: "queue_desc",
    40: "queue_driver", 48: "queue_device",
}  # fmt: skip
CAPABILITY = {
    0: "cap_vndr", 1: "cap_next", 2: "cap_len", 3: "cfg_type", 4: "bar", 5: "id", 6: "padding", 8: "offset",
    12: "length",
}  # fmt: skip
KINDS = {COMMON_CFG: "common", NOTIFY_CFG: "notify", ISR_CFG: "isr", DEVICE_CFG: "device", PCI_CFG: "pci"}


@pytest.fixture
def gpu() -> VirtioDriver:
    return VirtioDriver(VirtioPci(VirtioGpu()), FakeHost())


def name_of(driver: VirtioDriver, kind: int, offset: int) -> str | None:
    structure: Structure = driver.structures[kind]
    return driver.device.register_name(structure.bar, structure.offset + offset)


@pytest.mark.parametrize(("offset", "name"), COMMON.items())
def test_a_register_of_the_common_configuration_has_the_specification_s_name(
    gpu: VirtioDriver, offset: int, name: str
) -> None:
    assert name_of(gpu, COMMON_CFG, offset) == f"common.{name}"


def test_the_common_configuration_has_a_name_for_every_byte(gpu: VirtioDriver) -> None:
    for offset in range(56):
        start = max(at for at in COMMON if at <= offset)
        inside = f"+{offset - start}" if offset > start else ""
        assert name_of(gpu, COMMON_CFG, offset) == f"common.{COMMON[start]}{inside}"
    assert name_of(gpu, COMMON_CFG, 32 + 4) == "common.queue_desc+4"
    assert name_of(gpu, COMMON_CFG, 56) is None


def test_the_common_configuration_is_in_bar_4(gpu: VirtioDriver) -> None:
    assert gpu.device.register_name(4, 0x16) == "common.queue_select"


def test_a_notification_names_the_queue(gpu: VirtioDriver) -> None:
    stride = gpu.read(CONFIG, gpu.structures[NOTIFY_CFG].at + NOTIFY_OFF_MULTIPLIER, 4)
    assert [name_of(gpu, NOTIFY_CFG, offset) for offset in (0, stride, 2 * stride, stride + 2)] == [
        "notify[0]", "notify[1]", "notify[2]", "notify[1]+2",
    ]  # fmt: skip


def test_the_isr_status_has_a_name(gpu: VirtioDriver) -> None:
    assert name_of(gpu, ISR_CFG, 0) == "isr"


def test_device_configuration_has_the_names_of_the_device(gpu: VirtioDriver) -> None:
    assert [name_of(gpu, DEVICE_CFG, offset) for offset in (0, 4, 8, 12, 13, 16)] == [
        "device.events_read", "device.events_clear", "device.num_scanouts", "device.num_capsets",
        "device.num_capsets+1", "device+16",
    ]  # fmt: skip


def test_device_configuration_of_a_device_without_names_is_counted_in_bytes() -> None:
    echo = VirtioDriver(VirtioPci(EchoDevice()), FakeHost())
    assert [name_of(echo, DEVICE_CFG, offset) for offset in (0, 8)] == ["device", "device+8"]


@pytest.mark.parametrize(("kind", "kind_name"), KINDS.items())
def test_a_capability_has_the_specification_s_names(gpu: VirtioDriver, kind: int, kind_name: str) -> None:
    at = gpu.structures[kind].at
    for offset, name in CAPABILITY.items():
        assert gpu.device.register_name(CONFIG, at + offset) == f"virtio_cap[{kind_name}].{name}"


def test_capabilities_name_what_only_they_have(gpu: VirtioDriver) -> None:
    notify, access = gpu.structures[NOTIFY_CFG].at, gpu.structures[PCI_CFG].at
    assert gpu.device.register_name(CONFIG, notify + 16) == "virtio_cap[notify].notify_off_multiplier"
    assert gpu.device.register_name(CONFIG, notify + 19) == "virtio_cap[notify].notify_off_multiplier+3"
    assert gpu.device.register_name(CONFIG, access + 16) == "virtio_cap[pci].pci_cfg_data"
    assert gpu.device.register_name(CONFIG, access + 19) == "virtio_cap[pci].pci_cfg_data+3"
    assert gpu.device.register_name(CONFIG, access + 20) is None


def test_any_region_and_offset_may_be_asked_for() -> None:
    device = VirtioPci(VirtioGpu())
    for index, region in enumerate(device.regions):
        for offset in range(region.size):
            assert device.register_name(index, offset) != ""
        for offset in (-1, region.size, region.size + 4, 1 << 64):
            assert device.register_name(index, offset) is None
    for index in (-1, len(device.regions), 1 << 32):
        assert device.register_name(index, 0) is None
