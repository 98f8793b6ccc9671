"""The common configuration structure: status, features and queues, as the driver programs them (4.1.4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from devices.pci.registers import Register, RegisterBlock
from devices.virtio.constants import (
    COMMON_CONFIG_SIZE,
    NO_VECTOR,
    CommonRegister,
    DeviceStatus,
    Feature,
)
from devices.virtio.virtqueue import RingLayout

_LOW = (1 << 32) - 1
_DRIVER_BITS = int(
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FAILED
)
_FEATURES_OK = int(DeviceStatus.FEATURES_OK)
_DRIVER_OK = int(DeviceStatus.DRIVER_OK)


@dataclass(slots=True)
class QueueRegisters:
    """What the driver has programmed into one queue."""

    max_size: int
    size: int = 0
    vector: int = NO_VECTOR
    enabled: bool = False
    descriptors: int = 0
    available: int = 0
    used: int = 0

    @property
    def layout(self) -> RingLayout:
        """Where the parts of the ring are."""
        return RingLayout(self.size, self.descriptors, self.available, self.used)


class CommonConfigOwner(Protocol):
    """The transport, told what the driver did."""

    @property
    def offered_features(self) -> int:
        """Every feature bit that the driver may accept."""

    def driver_reset(self) -> None:
        """The driver wrote 0 to the device status: reset everything, :meth:`CommonConfig.reset` included."""

    def driver_ready(self) -> None:
        """The driver set DRIVER_OK."""

    def queue_enabled(self, index: int) -> None:
        """The driver enabled a queue."""


class CommonConfig:
    """Registers of the common configuration, with ``vectors`` MSI-X vectors to name in them."""

    def __init__(self, owner: CommonConfigOwner, queue_sizes: tuple[int, ...], vectors: int) -> None:
        self._owner = owner
        self._queue_sizes = queue_sizes
        self._vectors = vectors
        self.generation = 0
        self.registers = RegisterBlock(COMMON_CONFIG_SIZE, self._describe())
        self.reset()

    def reset(self) -> None:
        """What the driver programmed is gone."""
        self.status = 0
        self.features = 0
        self.config_vector = NO_VECTOR
        self.queues = [QueueRegisters(size, size) for size in self._queue_sizes]
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._queue_select = 0

    @property
    def driver_ok(self) -> bool:
        """The driver is up."""
        return bool(self.status & _DRIVER_OK)

    def _describe(self) -> list[Register]:
        at = CommonRegister
        return [
            Register(at.DEVICE_FEATURE_SELECT, 4, lambda: self._device_feature_select, self._select_offered),
            Register(at.DEVICE_FEATURE, 4, self._offered_word),
            Register(at.DRIVER_FEATURE_SELECT, 4, lambda: self._driver_feature_select, self._select_accepted),
            Register(at.DRIVER_FEATURE, 4, self._accepted_word, self._accept),
            Register(at.CONFIG_MSIX_VECTOR, 2, lambda: self.config_vector, self._set_config_vector),
            Register(at.NUM_QUEUES, 2, lambda: len(self.queues)),
            Register(at.DEVICE_STATUS, 1, lambda: self.status, self._set_status),
            Register(at.CONFIG_GENERATION, 1, lambda: self.generation & 0xFF),
            Register(at.QUEUE_SELECT, 2, lambda: self._queue_select, self._select_queue),
            Register(at.QUEUE_SIZE, 2, self._queue_field(lambda queue: queue.size), self._set_queue_size),
            Register(
                at.QUEUE_MSIX_VECTOR, 2, self._queue_field(lambda queue: queue.vector), self._set_queue_vector
            ),
            Register(at.QUEUE_ENABLE, 2, self._queue_field(lambda queue: queue.enabled), self._enable_queue),
            Register(at.QUEUE_NOTIFY_OFF, 2, self._notify_offset),
            *self._address(at.QUEUE_DESC, "descriptors"),
            *self._address(at.QUEUE_DRIVER, "available"),
            *self._address(at.QUEUE_DEVICE, "used"),
        ]

    def _address(self, offset: int, name: str) -> tuple[Register, Register]:
        """A 64-bit address, which drivers may access as two halves (4.1.3.1)."""

        def set_low(value: int) -> None:
            queue = self._configurable_queue()
            if queue is not None:
                setattr(queue, name, getattr(queue, name) & ~_LOW | value)

        def set_high(value: int) -> None:
            queue = self._configurable_queue()
            if queue is not None:
                setattr(queue, name, getattr(queue, name) & _LOW | value << 32)

        return (
            Register(offset, 4, self._queue_field(lambda queue: getattr(queue, name) & _LOW), set_low),
            Register(offset + 4, 4, self._queue_field(lambda queue: getattr(queue, name) >> 32), set_high),
        )

    def _queue_field(self, field: Callable[[QueueRegisters], int]) -> Callable[[], int]:
        """A field of the selected queue; 0 where there is none, as ``queue_size`` must say then."""

        def read() -> int:
            queue = self._selected_queue()
            return 0 if queue is None else field(queue)

        return read

    def _selected_queue(self) -> QueueRegisters | None:
        if self._queue_select < len(self.queues):
            return self.queues[self._queue_select]
        return None

    def _configurable_queue(self) -> QueueRegisters | None:
        queue = self._selected_queue()
        return None if queue is None or queue.enabled else queue

    def _select_offered(self, value: int) -> None:
        self._device_feature_select = value

    def _select_accepted(self, value: int) -> None:
        self._driver_feature_select = value

    def _select_queue(self, value: int) -> None:
        self._queue_select = value

    def _offered_word(self) -> int:
        return _word(self._owner.offered_features, self._device_feature_select)

    def _accepted_word(self) -> int:
        return _word(self.features, self._driver_feature_select)

    def _accept(self, value: int) -> None:
        if self._driver_feature_select > 1 or self.status & _FEATURES_OK:
            return
        shift = 32 * self._driver_feature_select
        self.features = self.features & ~(_LOW << shift) | value << shift

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._owner.driver_reset()
            return
        added = value & _DRIVER_BITS & ~self.status
        if added & _FEATURES_OK and not self._acceptable():
            added &= ~_FEATURES_OK
        if added & _DRIVER_OK and not (self.status | added) & _FEATURES_OK:
            added &= ~_DRIVER_OK
        self.status |= added
        if added & _DRIVER_OK:
            self._owner.driver_ready()

    def _acceptable(self) -> bool:
        offered = self._owner.offered_features
        return not self.features & ~offered and bool(self.features & Feature.VERSION_1)

    def _vector(self, value: int) -> int:
        return value if value < self._vectors else NO_VECTOR

    def _set_config_vector(self, value: int) -> None:
        self.config_vector = self._vector(value)

    def _set_queue_vector(self, value: int) -> None:
        queue = self._selected_queue()
        if queue is not None:
            queue.vector = self._vector(value)

    def _set_queue_size(self, value: int) -> None:
        queue = self._configurable_queue()
        if queue is not None and 0 < value <= queue.max_size and not value & (value - 1):
            queue.size = value

    def _enable_queue(self, value: int) -> None:
        queue = self._configurable_queue()
        if queue is not None and value == 1:
            queue.enabled = True
            self._owner.queue_enabled(self._queue_select)

    def _notify_offset(self) -> int:
        return self._queue_select if self._selected_queue() is not None else 0


def _word(features: int, select: int) -> int:
    return features >> 32 * select & _LOW if select <= 1 else 0
