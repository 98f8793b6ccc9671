"""Names and numbers of the virtio 1.3 specification that every device shares."""

from __future__ import annotations

from enum import IntEnum, IntFlag

VIRTIO_VENDOR = 0x1AF4
MODERN_DEVICE_BASE = 0x1040
"""A modern PCI device's id is this plus its virtio device id (4.1.2)."""
MODERN_REVISION = 1


class DeviceStatus(IntFlag):
    """Device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(IntFlag):
    """Reserved feature bits (6), as masks."""

    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33


class DescriptorFlag(IntFlag):
    """Flags of a descriptor (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


DESCRIPTOR_SIZE = 16
USED_ELEMENT_SIZE = 8
RING_HEADER_SIZE = 4
"""Flags and index, in front of the entries of the available and the used ring (2.7.6, 2.7.8)."""
EVENT_SIZE = 2
"""used_event and avail_event, behind the entries (2.7.7, 2.7.10)."""
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1
MAX_QUEUE_SIZE = 32768
MAX_CHAIN_BYTES = 1 << 32
"""A chain describes at most this many bytes (2.7.5.2)."""


class PciCapability(IntEnum):
    """``cfg_type`` of a virtio PCI capability (4.1.4)."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5


class Isr(IntFlag):
    """Bits of the ISR status (4.1.4.5)."""

    QUEUE = 1
    DEVICE_CONFIG = 2


NO_VECTOR = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR: no MSI-X vector for this event (4.1.5.1.2)."""


class CommonRegister(IntEnum):
    """Byte offsets in the common configuration structure (4.1.4.3)."""

    DEVICE_FEATURE_SELECT = 0
    DEVICE_FEATURE = 4
    DRIVER_FEATURE_SELECT = 8
    DRIVER_FEATURE = 12
    CONFIG_MSIX_VECTOR = 16
    NUM_QUEUES = 18
    DEVICE_STATUS = 20
    CONFIG_GENERATION = 21
    QUEUE_SELECT = 22
    QUEUE_SIZE = 24
    QUEUE_MSIX_VECTOR = 26
    QUEUE_ENABLE = 28
    QUEUE_NOTIFY_OFF = 30
    QUEUE_DESC = 32
    QUEUE_DRIVER = 40
    QUEUE_DEVICE = 48


COMMON_CONFIG_SIZE = 56
