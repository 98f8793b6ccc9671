"""VFIO's type1 IOMMU as user space sees it: a container, a group in it, and the mappings of the container.

Structures, numbers and rules are those of linux/vfio.h; drivers/vfio/vfio_iommu_type1.c has the errors.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from enum import IntEnum, IntFlag
from pathlib import Path
from struct import Struct
from typing import Final

from server.dma.errors import DmaDomainUnavailable

VFIO_API_VERSION: Final = 0
VFIO_TYPE1V2_IOMMU: Final = 3
_CONTAINER: Final = Path("/dev/vfio/vfio")
_GROUPS: Final = Path("/dev/vfio")


class VfioIoctl(IntEnum):
    """Request numbers: _IO(';', 100 + n)."""

    GET_API_VERSION = 0x3B64
    CHECK_EXTENSION = 0x3B65
    SET_IOMMU = 0x3B66
    GROUP_GET_STATUS = 0x3B67
    GROUP_SET_CONTAINER = 0x3B68
    GROUP_GET_DEVICE_FD = 0x3B6A
    IOMMU_GET_INFO = 0x3B70
    IOMMU_MAP_DMA = 0x3B71
    IOMMU_UNMAP_DMA = 0x3B72


class GroupFlags(IntFlag):
    """VFIO_GROUP_FLAGS_*."""

    VIABLE = 1
    CONTAINER_SET = 2


class MapFlags(IntFlag):
    """VFIO_DMA_MAP_FLAG_*."""

    READ = 1
    WRITE = 2


class IommuInfoFlags(IntFlag):
    """VFIO_IOMMU_INFO_*."""

    PGSIZES = 1
    CAPS = 2


class IommuCapability(IntEnum):
    """VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE and VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL."""

    IOVA_RANGE = 1
    DMA_AVAIL = 3


MAP_DMA: Final = Struct("=IIQQQ")
"""struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size."""
UNMAP_DMA: Final = Struct("=IIQQ")
"""struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size."""
GROUP_STATUS: Final = Struct("=II")
"""struct vfio_group_status: argsz, flags."""
IOMMU_INFO: Final = Struct("=IIQII")
"""struct vfio_iommu_type1_info: argsz, flags, iova_pgsizes, cap_offset, and padding (newer headers name it)."""
CAPABILITY: Final = Struct("=HHI")
"""struct vfio_info_cap_header: id, version, next."""
COUNT: Final = Struct("=I")
"""What follows the header: nr_iovas, or avail."""
RANGES_AT: Final = 16
"""Where in struct vfio_iommu_type1_info_cap_iova_range the ranges are."""
RANGE: Final = Struct("=QQ")
"""struct vfio_iova_range: start, end (the last address)."""
_INT: Final = Struct("=i")

Ioctl = Callable[[int, int, bytearray | int], int]


def kernel_ioctl(fd: int, request: int, argument: bytearray | int = 0) -> int:
    """ioctl(2); a bytearray is changed in place. Raises OSError."""
    return fcntl.ioctl(fd, request, argument)


class VfioContainer:
    """An IOMMU context. Made by :meth:`open` or :meth:`adopt`; :meth:`close` gives it back.

    ``ranges`` are the IO virtual addresses that may be used, the first and the one behind the last: what is reserved,
    such as the window of message signalled interrupts, is left out. ``page_size`` is the smallest that the IOMMU has.
    """

    def __init__(self, fd: int, group_fd: int = -1, ioctl: Ioctl = kernel_ioctl) -> None:
        """Take over the fds of a container that has its IOMMU set. Raises OSError."""
        self._ioctl = ioctl
        self._fd = fd
        self._group_fd = group_fd
        self.page_size, self.ranges = self._limits()

    @classmethod
    def open(cls, group: int) -> VfioContainer:
        """A new container with IOMMU group ``group`` in it. Raises DmaDomainUnavailable."""
        container = _open(_CONTAINER, "load the module vfio-pci")
        group_fd = -1
        try:
            _check_type1(container)
            group_fd = _open(_GROUPS / str(group), f"bind the devices of IOMMU group {group} to vfio-pci")
            _join(container, group_fd, group)
            return cls(container, group_fd)
        except (DmaDomainUnavailable, OSError) as error:
            os.close(container)
            if group_fd >= 0:
                os.close(group_fd)
            if isinstance(error, OSError):
                raise DmaDomainUnavailable(f"VFIO refuses IOMMU group {group}: {error.strerror}") from error
            raise

    @classmethod
    def adopt(cls, fd: int) -> VfioContainer:
        """The container ``fd`` of whoever drives the assigned device: a group can be opened only once.

        Raises DmaDomainUnavailable where the fd is no container, or has no type1 IOMMU; it stays the caller's then.
        """
        try:
            return cls(fd)
        except (OSError, ValueError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DmaDomainUnavailable(
                f"fd {fd} is not a VFIO container with its IOMMU set: {reason}"
            ) from error

    def device(self, name: str) -> int:
        """A new fd of device ``name`` ("0000:00:04.0") of the group. Raises OSError; ENODEV if this was adopted."""
        if self._group_fd < 0:
            raise OSError(errno.ENODEV, "the group of an adopted VFIO container is another process's")
        return self._ioctl(self._group_fd, VfioIoctl.GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))

    def map_dma(self, iova: int, vaddr: int, size: int, flags: MapFlags) -> None:
        """Let devices reach this process's memory at ``vaddr`` through ``iova``; it is pinned. Raises OSError.

        ENOMEM: over RLIMIT_MEMLOCK. ENOSPC: as many mappings as there may be (dma_entry_limit). EEXIST: overlaps.
        """
        request = bytearray(MAP_DMA.pack(MAP_DMA.size, flags, vaddr, iova, size))
        self._ioctl(self._fd, VfioIoctl.IOMMU_MAP_DMA, request)

    def unmap_dma(self, iova: int, size: int) -> None:
        """Take whole mappings back. Raises OSError; EINVAL where one would be cut in two."""
        request = bytearray(UNMAP_DMA.pack(UNMAP_DMA.size, 0, iova, size))
        self._ioctl(self._fd, VfioIoctl.IOMMU_UNMAP_DMA, request)
        _, _, _, unmapped = UNMAP_DMA.unpack(request)
        if unmapped != size:
            raise OSError(errno.EINVAL, f"{unmapped:#x} of {size:#x} bytes were unmapped")

    @property
    def available(self) -> int | None:
        """How many more mappings the kernel takes; None where it does not say."""
        data = _capabilities(self._info()).get(IommuCapability.DMA_AVAIL)
        return None if data is None else int(COUNT.unpack_from(data, CAPABILITY.size)[0])

    def close(self) -> None:
        """Close the fds; the kernel takes back what is still mapped. Calling it again does nothing."""
        for fd in (self._group_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._group_fd = -1

    def _limits(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        info = self._info()
        _, _, page_sizes, _, _ = IOMMU_INFO.unpack_from(info)
        data = _capabilities(info).get(IommuCapability.IOVA_RANGE)
        if data is None:
            # The container has mediated devices alone, which take any address, or Linux is older than 5.4.
            return page_sizes & -page_sizes, ((0, 1 << 64),)
        (count,) = COUNT.unpack_from(data, CAPABILITY.size)
        ranges = (RANGE.unpack_from(data, RANGES_AT + index * RANGE.size) for index in range(count))
        return page_sizes & -page_sizes, tuple((start, last + 1) for start, last in ranges)

    def _info(self) -> bytearray:
        """struct vfio_iommu_type1_info, and the capabilities behind it."""
        size, info = IOMMU_INFO.size, bytearray()
        while size > len(info):
            info = bytearray(IOMMU_INFO.pack(size, 0, 0, 0, 0).ljust(size, b"\0"))
            self._ioctl(self._fd, VfioIoctl.IOMMU_GET_INFO, info)
            size = IOMMU_INFO.unpack_from(info)[0]
        return info


def _capabilities(info: bytearray) -> dict[int, bytes]:
    """The capabilities of an IOMMU by number, header included."""
    _, flags, _, offset, _ = IOMMU_INFO.unpack_from(info)
    found: dict[int, bytes] = {}
    while flags & IommuInfoFlags.CAPS and offset:
        number, _, following = CAPABILITY.unpack_from(info, offset)
        found[number] = bytes(info[offset:])
        offset = following
    return found


def _open(path: Path, fix: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DmaDomainUnavailable(f"there is no {path}: {fix}") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            fix = "another process has it; let that pass its container (--vfio-container), or stop it"
        elif error.errno in (errno.EACCES, errno.EPERM):
            fix = "run as root, or give this user the device file"
        raise DmaDomainUnavailable(f"cannot open {path} ({error.strerror}): {fix}") from error


def _check_type1(container: int) -> None:
    if kernel_ioctl(container, VfioIoctl.GET_API_VERSION) != VFIO_API_VERSION:
        raise DmaDomainUnavailable(f"{_CONTAINER} speaks another version of VFIO")
    if not kernel_ioctl(container, VfioIoctl.CHECK_EXTENSION, VFIO_TYPE1V2_IOMMU):
        raise DmaDomainUnavailable("VFIO has no type1 IOMMU: load the module vfio_iommu_type1")


def _join(container: int, group_fd: int, group: int) -> None:
    status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    kernel_ioctl(group_fd, VfioIoctl.GROUP_GET_STATUS, status)
    _, flags = GROUP_STATUS.unpack(status)
    if not flags & GroupFlags.VIABLE:
        raise DmaDomainUnavailable(
            f"all devices of IOMMU group {group} must be bound to vfio-pci, or to nothing"
        )
    kernel_ioctl(group_fd, VfioIoctl.GROUP_SET_CONTAINER, bytearray(_INT.pack(container)))
    try:
        kernel_ioctl(container, VfioIoctl.SET_IOMMU, VFIO_TYPE1V2_IOMMU)
    except PermissionError as error:
        raise DmaDomainUnavailable(
            f"the IOMMU of group {group} does not remap interrupts: "
            "where its devices are trusted, set vfio_iommu_type1.allow_unsafe_interrupts=1"
        ) from error
