"""Devices that QEMU survives the unplugging of.

When a vfio-user device with MSI-X is unplugged, QEMU removes the memory region of its pending bits from a BAR that is
gone by then, and aborts: "memory_region_del_subregion: Assertion `subregion->container == mr' failed", and the guest
is gone, too. 11.1.3 does so, and the code is the same since 10.1. Without MSI-X the region does not exist, and the
guest's driver uses INTA#.
"""

from __future__ import annotations

from devices.models import MODELS, MSIX


def without_msix(device: str) -> str:
    """``device`` (``NAME[,OPTION=VALUE...]``) with ``msix=off``, where its model has that option; ``msix=on`` wins."""
    name, comma, settings = device.partition(",")
    if not any(model.name == name and MSIX in model.options for model in MODELS):
        return device
    return f"{name},{MSIX.name}=off{comma}{settings}"
