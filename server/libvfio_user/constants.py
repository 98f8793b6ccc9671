"""What libvfio-user.h defines: constants, structures and the types of callbacks. Both generations agree on these.

Regions and interrupts have VFIO's indexes: :class:`protocol.PciRegion`, :class:`protocol.PciIrq`.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag


class Transport(IntEnum):
    """``vfu_trans_t``."""

    SOCK = 0


class DeviceType(IntEnum):
    """``vfu_dev_type_t``."""

    PCI = 0


class ContextFlags(IntFlag):
    """Flags of ``vfu_create_ctx``."""

    ATTACH_NB = 1 << 0


class RegionFlags(IntFlag):
    """Flags of ``vfu_setup_region``."""

    READ = 1 << 0
    WRITE = 1 << 1
    MEM = 1 << 2
    ALWAYS_CB = 1 << 3


class ResetType(IntEnum):
    """``vfu_reset_type_t``: why the reset callback is called."""

    DEVICE = 0
    LOST_CONN = 1
    PCI_FLR = 2


class PciType(IntEnum):
    """``vfu_pci_type_t``."""

    CONVENTIONAL = 0
    EXPRESS = 3


PCI_HEADER_TYPE_NORMAL = 0


class LogLevel(IntEnum):
    """Levels of ``vfu_setup_log``, which are syslog(3)'s."""

    ERR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class DmaInfo(ctypes.Structure):
    """``vfu_dma_info_t``: a DMA region of the client, as the library has it."""

    _fields_ = (
        ("iova", Iovec),
        ("vaddr", ctypes.c_void_p),
        ("mapping", Iovec),
        ("page_size", ctypes.c_size_t),
        ("prot", ctypes.c_uint32),
    )


loff_t = ctypes.c_int64

RegionAccess = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    loff_t,
    ctypes.c_bool,
    use_errno=True,
)
"""``vfu_region_access_cb_t``: context, buffer, bytes, offset, whether it is a write."""
DmaRegister = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(DmaInfo), use_errno=True)
"""``vfu_dma_register_cb_t``."""
DmaUnregister = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(DmaInfo), use_errno=True)
"""``vfu_dma_unregister_cb_t``."""
Quiesce = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, use_errno=True)
"""``vfu_device_quiesce_cb_t``: 0, or -1 and errno, where EBUSY promises a ``vfu_device_quiesced``."""
Reset = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, use_errno=True)
"""``vfu_reset_cb_t``."""
LogMessage = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, use_errno=True)
"""``vfu_log_fn_t``: context, level, text."""
