"""Access to the BARs through configuration space, for firmware that cannot map them (4.1.4.9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from devices.contract import Region
from devices.pci.config_space import ConfigSpace
from devices.pci.constants import BAR_COUNT

_BAR = 4
_OFFSET = 8
_LENGTH = 12
_DATA = 16
_DATA_SIZE = 4
_WIDTHS = (1, 2, 4)


class BarAccess(Protocol):
    """The function whose BARs are reached."""

    @property
    def regions(self) -> Sequence[Region]:
        """The regions, by index."""

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Read a register."""

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        """Write a register."""


class ConfigAccess:
    """The VIRTIO_PCI_CAP_PCI_CFG capability at ``capability``: its data is a BAR's, wherever it points."""

    def __init__(self, config: ConfigSpace, capability: int, function: BarAccess) -> None:
        self._config = config
        self._capability = capability
        self._data = capability + _DATA
        self._function = function

    def refresh(self, offset: int, count: int) -> None:
        """Before a read of configuration space: fetch what the data window shows."""
        if offset >= self._data + _DATA_SIZE or offset + count <= self._data:
            return
        target = self._target()
        if target is not None:
            bar, at, width = target
            value = int.from_bytes(self._function.region_read(bar, at, width), "little")
            self._config.put(self._data, width, value)

    def written(self, offset: int, count: int) -> None:
        """After a write to configuration space: pass on what landed in the data window."""
        if offset >= self._data + _DATA_SIZE or offset + count <= self._data:
            return
        target = self._target()
        if target is not None:
            bar, at, width = target
            self._function.region_write(bar, at, memoryview(self._config.read(self._data, width)))

    def _target(self) -> tuple[int, int, int] | None:
        """BAR, offset and width, where they name something that is there."""
        bar = self._config.get(self._capability + _BAR, 1)
        offset = self._config.get(self._capability + _OFFSET, 4)
        width = self._config.get(self._capability + _LENGTH, 4)
        if width not in _WIDTHS or offset % width or bar >= BAR_COUNT:
            return None
        if offset + width > self._function.regions[bar].size:
            return None
        return bar, offset, width
