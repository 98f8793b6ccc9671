"""Names of the PCI specification (linux/pci_regs.h) and of VFIO's view of a PCI device (linux/vfio.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

CONFIG_SPACE_SIZE = 256
EXTENDED_CONFIG_SPACE_SIZE = 4096
FIRST_CAPABILITY = 0x40
BAR_COUNT = 6
SMALLEST_MEMORY_BAR = 16


class ConfigRegister(IntEnum):
    """Byte offsets in a type 0 configuration header (PCI Local Bus 3.0, figure 6-1)."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION_ID = 0x08
    CLASS_CODE = 0x09
    CACHE_LINE_SIZE = 0x0C
    LATENCY_TIMER = 0x0D
    HEADER_TYPE = 0x0E
    BAR0 = 0x10
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    EXPANSION_ROM = 0x30
    CAPABILITIES_POINTER = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D


class Command(IntFlag):
    """Bits of the command register (6.2.2) that a memory-only function implements."""

    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


class Status(IntFlag):
    """Bits of the status register (6.2.3)."""

    INTERRUPT = 1 << 3
    CAPABILITIES = 1 << 4
    MASTER_DATA_PARITY_ERROR = 1 << 8
    SIGNALED_TARGET_ABORT = 1 << 11
    RECEIVED_TARGET_ABORT = 1 << 12
    RECEIVED_MASTER_ABORT = 1 << 13
    SIGNALED_SYSTEM_ERROR = 1 << 14
    DETECTED_PARITY_ERROR = 1 << 15


class BarFlag(IntFlag):
    """Low bits of a memory BAR (6.2.5.1)."""

    MEMORY_64 = 1 << 2
    PREFETCHABLE = 1 << 3


class CapabilityId(IntEnum):
    """Capability ids (PCI Code and ID Assignment, section 2)."""

    MSI = 0x05
    VENDOR_SPECIFIC = 0x09
    PCI_EXPRESS = 0x10
    MSIX = 0x11


class MsiControl(IntFlag):
    """Bits of MSI message control (6.8.1.3); bits 1-3 hold the binary logarithm of the number of vectors."""

    ENABLE = 1 << 0
    MULTIPLE_MESSAGE_ENABLE = 7 << 4
    ADDRESS_64 = 1 << 7


MSI_MAX_VECTORS = 32


class MsixControl(IntFlag):
    """Bits of MSI-X message control (6.8.2.3); bits 0-10 hold the table size less one."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


MSIX_ENTRY_SIZE = 16
MSIX_VECTOR_CONTROL = 12
MSIX_VECTOR_MASKED = 1
MSIX_MAX_VECTORS = 2048
MSIX_STRUCTURE_ALIGNMENT = 2048


class InterruptPin(IntEnum):
    """Values of the interrupt pin register (6.2.4)."""

    NONE = 0
    INTA = 1
