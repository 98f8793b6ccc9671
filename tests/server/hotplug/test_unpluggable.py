"""Devices without MSI-X, which QEMU survives the unplugging of."""

from __future__ import annotations

import pytest

from devices.contract import Device
from devices.models import MODELS
from devices.pci.config_space import PciIdentity
from devices.pci.constants import CapabilityId, ConfigRegister, InterruptPin
from devices.pci.function import MsixSpec, PciFunction
from devices.registry import create_device
from protocol import PciRegion
from server.hotplug.unpluggable import hide_msix
from tests.server.register_device import RegisterDevice


def capabilities(device: Device) -> list[tuple[int, int]]:
    """Offset and id of every capability, as a driver finds them."""
    found, at = [], config_byte(device, ConfigRegister.CAPABILITIES_POINTER)
    while at:
        found.append((at, config_byte(device, at)))
        at = config_byte(device, at + 1)
    return found


def config_byte(device: Device, offset: int) -> int:
    return device.region_read(PciRegion.CONFIG, offset, 1)[0]


@pytest.mark.parametrize("model", [model.name for model in MODELS])
def test_a_device_keeps_every_capability_but_msix(model: str) -> None:
    device = create_device(MODELS, model)
    others = [(at, kind) for at, kind in capabilities(device) if kind != CapabilityId.MSIX]
    hide_msix(device)
    assert capabilities(device) == others
    device.reset()
    assert capabilities(device) == others


def test_a_virtio_gpu_had_msix_to_hide() -> None:
    device = create_device(MODELS, "virtio-gpu")
    assert CapabilityId.MSIX in [kind for _, kind in capabilities(device)]
    hide_msix(device)
    assert CapabilityId.MSIX not in [kind for _, kind in capabilities(device)]
    assert config_byte(device, ConfigRegister.INTERRUPT_PIN) == InterruptPin.INTA


@pytest.mark.parametrize("others", [(0, 0), (0, 1), (1, 0), (2, 2)])
def test_it_is_hidden_wherever_it_stands(others: tuple[int, int]) -> None:
    function = PciFunction(PciIdentity(0x1234, 0x5678, 0x0380), bars={}, msix=None)
    for _ in range(others[0]):
        function.config.add_capability(CapabilityId.VENDOR_SPECIFIC, b"\x04\0")
    with_msix = PciFunction(PciIdentity(0x1234, 0x5678, 0x0380), bars={}, msix=MsixSpec(1, 1))
    function.msix = with_msix.msix
    function.config.add_capability(CapabilityId.MSIX, bytes(10))
    for _ in range(others[1]):
        function.config.add_capability(CapabilityId.VENDOR_SPECIFIC, b"\x04\0")
    hide_msix(function)
    assert [kind for _, kind in capabilities(function)] == [CapabilityId.VENDOR_SPECIFIC] * sum(others)


def test_a_device_that_is_no_pci_function_stays_as_it_is() -> None:
    hide_msix(RegisterDevice())
