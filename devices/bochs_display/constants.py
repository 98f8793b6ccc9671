"""Names of Bochs' VBE display interface (vbe_display_api.txt) and of its PCI variant (QEMU's standard-vga.rst)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from devices.pci.config_space import PciIdentity

IDENTITY = PciIdentity(
    vendor=0x1234,
    device=0x1111,
    class_code=0x038000,
    revision=2,
    subsystem_vendor=0x1AF4,
    subsystem=0x1100,
)
"""PCI_CLASS_DISPLAY_OTHER: there are no VGA ports. Revision 2 says that the extended registers are there."""

FRAMEBUFFER_BAR = 0
MMIO_BAR = 2
MMIO_SIZE = 0x1000
EDID_START = 0x000
EDID_LENGTH = 0x400
DISPI_START = 0x500
EXTENDED_START = 0x600


class DispiIndex(IntEnum):
    """Indexes of the display interface's 16-bit registers (VBE_DISPI_INDEX_*); in the BAR each has two bytes."""

    ID = 0x0
    XRES = 0x1
    YRES = 0x2
    BPP = 0x3
    ENABLE = 0x4
    BANK = 0x5
    VIRT_WIDTH = 0x6
    VIRT_HEIGHT = 0x7
    X_OFFSET = 0x8
    Y_OFFSET = 0x9
    VIDEO_MEMORY_64K = 0xA


class Enable(IntFlag):
    """Bits of the ENABLE register (VBE_DISPI_*) that mean something without VGA and its banks."""

    ENABLED = 0x01
    GETCAPS = 0x02


DISPI_ID5 = 0xB0C5
"""The version of the interface that has VIDEO_MEMORY_64K."""
MAX_XRES = 16000
MAX_YRES = 12000
MAX_BPP = 32
VIDEO_MEMORY_UNIT = 64 << 10


class ExtendedRegister(IntEnum):
    """Byte offsets of QEMU's extended registers, 32 bits each."""

    SIZE = 0x0
    ENDIANNESS = 0x4


EXTENDED_LENGTH = 8


class Endianness(IntEnum):
    """Values of the ENDIANNESS register: how a pixel's word is in memory."""

    LITTLE = 0x1E1E1E1E
    BIG = 0xBEBEBEBE
