"""Constants of <linux/vfio.h> that vfio-user reuses."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class PciRegion(IntEnum):
    """Region indexes of a PCI device; indexes from 9 on are device-specific."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


PCI_NUM_REGIONS: Final = len(PciRegion)


class PciIrq(IntEnum):
    """Interrupt indexes of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


PCI_NUM_IRQS: Final = len(PciIrq)


class DeviceFlags(IntFlag):
    """VFIO_DEVICE_FLAGS_*."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlags(IntFlag):
    """VFIO_REGION_INFO_FLAG_*."""

    NONE = 0
    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class RegionCapabilityId(IntEnum):
    """VFIO_REGION_INFO_CAP_*."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class IrqFlags(IntFlag):
    """VFIO_IRQ_INFO_*."""

    NONE = 0
    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqData(IntEnum):
    """VFIO_IRQ_SET_DATA_*: what comes with a SET_IRQS message. One at a time."""

    NONE = 1 << 0
    BOOL = 1 << 1
    EVENTFD = 1 << 2


class IrqAction(IntEnum):
    """VFIO_IRQ_SET_ACTION_*: what a SET_IRQS message does, or connects to eventfds. One at a time."""

    MASK = 1 << 3
    UNMASK = 1 << 4
    TRIGGER = 1 << 5


class DmaMapFlags(IntFlag):
    """VFIO_DMA_MAP_FLAG_READ and _WRITE: what the device may do with the memory.

    MAPPABLE is VFIO_USER_F_DMA_REGION_MAPPABLE (now _MMAP) of libvfio-user: it comes with an fd, and says
    nothing that the fd does not say.
    """

    NONE = 0
    READ = 1 << 0
    WRITE = 1 << 1
    MAPPABLE = 1 << 2


class DmaUnmapFlags(IntFlag):
    """VFIO_DMA_UNMAP_FLAG_*."""

    NONE = 0
    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1


class Feature(IntEnum):
    """VFIO_DEVICE_FEATURE_*: the feature indexes that vfio-user supports."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8


class FeatureFlags(IntFlag):
    """VFIO_DEVICE_FEATURE_GET, _SET and _PROBE."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


FEATURE_MASK: Final = 0xFFFF
"""VFIO_DEVICE_FEATURE_MASK: the bits of a feature request's flags that hold the feature index."""


class MigrationFlags(IntFlag):
    """VFIO_MIGRATION_*."""

    NONE = 0
    STOP_COPY = 1 << 0
    P2P = 1 << 1
    PRE_COPY = 1 << 2


class DeviceState(IntEnum):
    """VFIO_DEVICE_STATE_*: the states of migration. Those with P2P are unused in vfio-user."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


class IoFdType(IntEnum):
    """VFIO_USER_IO_FD_TYPE_*: how a sub-region notifies through its fd."""

    IOEVENTFD = 0
    IOREGIONFD = 1


class IoEventFdFlags(IntFlag):
    """KVM_IOEVENTFD_FLAG_*, from <linux/kvm.h>."""

    NONE = 0
    DATAMATCH = 1 << 0
    PIO = 1 << 1
    VIRTIO_CCW_NOTIFY = 1 << 3


class IoRegionFdFlags(IntFlag):
    """KVM_IOREGION_*, from the ioregionfd proposal (kvm mailing list, February 2021)."""

    NONE = 0
    PIO = 1 << 0
    POSTED_WRITES = 1 << 1
