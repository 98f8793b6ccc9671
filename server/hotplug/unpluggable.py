"""Devices that QEMU survives the unplugging of.

When a vfio-user device with MSI-X is unplugged, QEMU removes the memory region of its pending bits from a BAR that is
gone by then, and aborts: "memory_region_del_subregion: Assertion `subregion->container == mr' failed", and the guest
is gone, too. 11.1.3 does so, and the code is the same since 10.1. Without MSI-X the region does not exist, and the
guest's driver uses INTA#.
"""

from __future__ import annotations

from devices.contract import Device
from devices.pci.constants import CapabilityId, ConfigRegister
from devices.pci.function import PciFunction

_NEXT = 1
"""Where a capability has the offset of the next one."""


def hide_msix(device: Device) -> None:
    """Take MSI-X out of the list of capabilities, before any client comes; the table's BAR stays, unused."""
    if not isinstance(device, PciFunction) or device.msix is None:
        return
    config = device.config
    link = int(ConfigRegister.CAPABILITIES_POINTER)
    while at := config.get(link, 1):
        if config.get(at, 1) == CapabilityId.MSIX:
            config.define(link, 1, config.get(at + _NEXT, 1))
            return
        link = at + _NEXT
