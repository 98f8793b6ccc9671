"""Names of the registers of the virtio PCI transport, as virtio 1.3 spells them, for traces and logs."""

from __future__ import annotations

from devices.pci.register_names import RegisterName, structure_names
from devices.virtio.constants import COMMON_CONFIG_SIZE, CommonRegister, PciCapability

_ENDS = (*CommonRegister, COMMON_CONFIG_SIZE)[1:]
_CAPABILITY = (
    ("cap_vndr", 1),
    ("cap_next", 1),
    ("cap_len", 1),
    ("cfg_type", 1),
    ("bar", 1),
    ("id", 1),
    ("padding", 2),
    ("offset", 4),
    ("length", 4),
)
_CAPABILITY_TAIL = {
    PciCapability.NOTIFY_CFG: ("notify_off_multiplier", 4),
    PciCapability.PCI_CFG: ("pci_cfg_data", 4),
}

common_register_name = structure_names(
    (register.name.lower(), end - register) for register, end in zip(CommonRegister, _ENDS, strict=True)
)
"""Names in struct virtio_pci_common_cfg (4.1.4.3), which has no gaps."""


def capability_name(kind: PciCapability) -> str:
    """``virtio_cap[common]``: the capability that says where a structure is (4.1.4)."""
    return f"virtio_cap[{kind.name.removesuffix('_CFG').lower()}]"


def capability_register_name(kind: PciCapability) -> RegisterName:
    """Names in struct virtio_pci_cap (4.1.4), and in what a kind has behind it (4.1.4.4, 4.1.4.9)."""
    tail = _CAPABILITY_TAIL.get(kind)
    return structure_names(_CAPABILITY if tail is None else (*_CAPABILITY, tail))
