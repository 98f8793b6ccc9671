"""MSI-X: the capability, the vector table and the pending bits (PCI Local Bus 3.0, section 6.8.2).

Under VFIO the client programs vectors through SET_IRQS and masks them there; a VMM keeps the guest's table
to itself. So the table here is memory that decides nothing, while enabling and the function mask, which
clients do write to configuration space, are honoured.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.pci.config_space import ConfigSpace
from devices.pci.constants import (
    MSIX_ENTRY_SIZE,
    MSIX_MAX_VECTORS,
    MSIX_STRUCTURE_ALIGNMENT,
    MSIX_VECTOR_CONTROL,
    MSIX_VECTOR_MASKED,
    CapabilityId,
    MsixControl,
)
from devices.pci.register_names import array_names, structure_names
from devices.pci.registers import Window

_PENDING_WORD = 8
_SMALLEST_BAR = 4096
_CONTROL = 2
_CONTROL_WIDTH = 2
_CAPABILITY_NAMES = structure_names((("id", 1), ("next", 1), ("control", 2), ("table", 4), ("pba", 4)))
_TABLE_NAMES = array_names(
    "table",
    MSIX_ENTRY_SIZE,
    structure_names((("address", 4), ("upper_address", 4), ("data", 4), ("vector_control", 4))),
)


class Msix:
    """MSI-X with ``vectors`` vectors, whose table and pending bits live in BAR ``bar`` of their own.

    ``deliver(vector)`` raises the interrupt.
    """

    def __init__(self, vectors: int, bar: int, config: ConfigSpace, deliver: Callable[[int], None]) -> None:
        if not 0 < vectors <= MSIX_MAX_VECTORS:
            raise ValueError(f"MSI-X has 1 to {MSIX_MAX_VECTORS} vectors, not {vectors}")
        self.vectors = vectors
        self._config = config
        self._deliver = deliver
        self._table = bytearray(vectors * MSIX_ENTRY_SIZE)
        self._pending = bytearray((vectors + 63) // 64 * _PENDING_WORD)
        self._pending_offset = -(-len(self._table) // MSIX_STRUCTURE_ALIGNMENT) * MSIX_STRUCTURE_ALIGNMENT
        self.enabled = False
        self._function_masked = False
        self._capability = config.add_capability(
            CapabilityId.MSIX,
            (vectors - 1).to_bytes(2, "little")
            + bar.to_bytes(4, "little")
            + (self._pending_offset | bar).to_bytes(4, "little"),
            (MsixControl.ENABLE | MsixControl.FUNCTION_MASK).to_bytes(2, "little"),
            name="msix_cap",
            register_name=_CAPABILITY_NAMES,
        )
        self.reset()

    @property
    def bar_size(self) -> int:
        """Bytes that the table and the pending bits need as a BAR."""
        end = self._pending_offset + len(self._pending)
        return max(_SMALLEST_BAR, 1 << (end - 1).bit_length())

    @property
    def windows(self) -> tuple[Window, Window]:
        """The table and the pending bits, as windows of the BAR."""
        return (
            Window(0, len(self._table), self._read_table, self._write_table, "msix", _TABLE_NAMES),
            Window(self._pending_offset, len(self._pending), self._read_pending, name="msix.pba"),
        )

    def trigger(self, vector: int) -> None:
        """Raise ``vector``, or keep it pending under the function mask."""
        if not self.enabled or not 0 <= vector < self.vectors:
            return
        if self._function_masked:
            self._pending[vector >> 3] |= 1 << (vector & 7)
        else:
            self._deliver(vector)

    def config_written(self, offset: int, length: int) -> None:
        """Take note of a write to configuration space, and deliver what the function mask had kept."""
        control = self._capability + _CONTROL
        if offset >= control + _CONTROL_WIDTH or offset + length <= control:
            return
        value = self._config.get(control, _CONTROL_WIDTH)
        self.enabled = bool(value & MsixControl.ENABLE)
        self._function_masked = bool(value & MsixControl.FUNCTION_MASK)
        if self.enabled and not self._function_masked and any(self._pending):
            self._deliver_pending()

    def _deliver_pending(self) -> None:
        pending = int.from_bytes(self._pending, "little")
        self._pending[:] = bytes(len(self._pending))
        while pending:
            lowest = pending & -pending
            self._deliver(lowest.bit_length() - 1)
            pending ^= lowest

    def reset(self) -> None:
        """Disabled, nothing pending, and every vector masked."""
        self.enabled = False
        self._function_masked = False
        self._pending[:] = bytes(len(self._pending))
        self._table[:] = bytes(len(self._table))
        for at in range(MSIX_VECTOR_CONTROL, len(self._table), MSIX_ENTRY_SIZE):
            self._table[at] = MSIX_VECTOR_MASKED

    def _read_table(self, offset: int, count: int) -> bytes:
        return bytes(self._table[offset : offset + count])

    def _write_table(self, offset: int, data: memoryview) -> None:
        self._table[offset : offset + len(data)] = data

    def _read_pending(self, offset: int, count: int) -> bytes:
        return bytes(self._pending[offset : offset + count])
