"""MSI: the capability with a 64-bit message address, without per-vector masking (PCI Local Bus 3.0, section 6.8.1).

Under VFIO the client programs vectors through SET_IRQS, and a VMM keeps the guest's message to itself. So address and
data here are memory that decides nothing; message control, which clients do write to configuration space, is honoured.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.pci.config_space import ConfigSpace
from devices.pci.constants import MSI_MAX_VECTORS, CapabilityId, MsiControl
from devices.pci.register_names import structure_names

_CONTROL = 2
_CONTROL_WIDTH = 2
_ENABLED_SHIFT = 4
_MESSAGE = bytes(10)
_WRITABLE_MESSAGE = b"\xfc" + b"\xff" * 9
"""Addresses are multiples of 4 (6.8.1.4)."""
_NAMES = structure_names(
    (("id", 1), ("next", 1), ("control", 2), ("address", 4), ("upper_address", 4), ("data", 2))
)


class Msi:
    """MSI with ``vectors`` vectors, a power of two; ``deliver(vector)`` raises the interrupt."""

    def __init__(self, vectors: int, config: ConfigSpace, deliver: Callable[[int], None]) -> None:
        if not 0 < vectors <= MSI_MAX_VECTORS or vectors & (vectors - 1):
            raise ValueError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")
        self.vectors = vectors
        self._config = config
        self._deliver = deliver
        control = MsiControl.ADDRESS_64 | vectors.bit_length() - 1 << 1
        writable = MsiControl.ENABLE | MsiControl.MULTIPLE_MESSAGE_ENABLE
        capability = config.add_capability(
            CapabilityId.MSI,
            control.to_bytes(_CONTROL_WIDTH, "little") + _MESSAGE,
            writable.to_bytes(_CONTROL_WIDTH, "little") + _WRITABLE_MESSAGE,
            name="msi_cap",
            register_name=_NAMES,
        )
        self._control = capability + _CONTROL

    @property
    def enabled(self) -> bool:
        """Whether software has switched MSI on: the function must not use its pin then."""
        return bool(self._config.get(self._control, _CONTROL_WIDTH) & MsiControl.ENABLE)

    def trigger(self, vector: int) -> None:
        """Raise ``vector``; where software has allocated fewer, they share those that it has (6.8.1.6)."""
        if not self.enabled or not 0 <= vector < self.vectors:
            return
        control = self._config.get(self._control, _CONTROL_WIDTH)
        allocated = 1 << ((control & MsiControl.MULTIPLE_MESSAGE_ENABLE) >> _ENABLED_SHIFT)
        self._deliver(vector % allocated)
