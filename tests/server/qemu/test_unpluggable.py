"""Devices without MSI-X, which QEMU survives the unplugging of."""

from __future__ import annotations

import pytest

from devices.models import MODELS
from devices.pci.constants import CapabilityId, ConfigRegister
from devices.registry import create_device
from protocol import PciRegion
from server.qemu.unpluggable import without_msix


def kinds(text: str) -> list[int]:
    """The ids of all capabilities, as a driver finds them."""
    device = create_device(MODELS, text)

    def config_byte(offset: int) -> int:
        return device.region_read(PciRegion.CONFIG, offset, 1)[0]

    found, at = [], config_byte(ConfigRegister.CAPABILITIES_POINTER)
    while at:
        found.append(config_byte(at))
        at = config_byte(at + 1)
    return found


@pytest.mark.parametrize("model", [model.name for model in MODELS])
def test_a_device_of_any_model_has_every_capability_but_msix(model: str) -> None:
    others = [kind for kind in kinds(model) if kind != CapabilityId.MSIX]
    assert kinds(without_msix(model)) == others


def test_a_virtio_gpu_would_have_msix_otherwise() -> None:
    assert CapabilityId.MSIX in kinds("virtio-gpu")


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("virtio-gpu", "virtio-gpu,msix=off"),
        ("virtio-gpu,width=800,edid=off", "virtio-gpu,msix=off,width=800,edid=off"),
        ("edu", "edu"),
        ("bochs-display,edid=off", "bochs-display,edid=off"),
        ("nothing,width=800", "nothing,width=800"),
        ("", ""),
    ],
)
def test_the_option_is_added_where_the_model_has_it(given: str, served: str) -> None:
    assert without_msix(given) == served


def test_who_asks_for_msix_gets_it() -> None:
    assert CapabilityId.MSIX in kinds(without_msix("virtio-gpu,msix=on"))
