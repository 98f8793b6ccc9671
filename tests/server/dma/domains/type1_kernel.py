"""A model of the kernel's VFIO with a type1 IOMMU, by the rules of drivers/vfio/: what the ioctls do, and refuse."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from struct import Struct

from server.dma.address_space import PAGE_SIZE
from server.dma.domains.vfio import VfioContainer

GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU, GET_STATUS, SET_CONTAINER, _, GET_DEVICE_FD = range(
    0x3B64, 0x3B6B
)
GET_INFO, MAP_DMA, UNMAP_DMA = range(0x3B70, 0x3B73)
READ, WRITE = 1, 2

MSI_WINDOW = (0xFEE0_0000, 0xFEEF_FFFF)
RANGES = ((0, MSI_WINDOW[0] - 1), (MSI_WINDOW[1] + 1, (1 << 39) - 1))
"""What an Intel IOMMU of 39 bits has: first and last addresses."""

_INFO = Struct("=IIQII")
_IOVA_RANGE = Struct("=HHIII")
_MIGRATION = Struct("=HHIIIQQ")
_DMA_AVAIL = Struct("=HHII")


@dataclass(frozen=True, slots=True)
class Mapping:
    """What the IOMMU maps from ``iova`` on, and with which permissions."""

    iova: int
    size: int
    vaddr: int
    flags: int


class Type1Kernel:
    """The side of the kernel, for one container: :meth:`ioctl` is what a process calls.

    ``entries`` is dma_entry_limit, ``lockable`` how many pages may be locked.
    """

    def __init__(self, ranges: tuple[tuple[int, int], ...] = RANGES, entries: int = 65535) -> None:
        self.ranges = ranges
        self.entries = entries
        self.lockable = 1 << 40
        self.page_sizes = 0x4020_1000
        self.stubborn = False
        self.mappings: dict[int, Mapping] = {}

    @property
    def locked(self) -> int:
        """Pages that are mapped, and therefore locked."""
        return sum(mapping.size for mapping in self.mappings.values()) // PAGE_SIZE

    def load(self, iova: int, length: int = PAGE_SIZE) -> bytes:
        """What a device reads at ``iova``. Raises KeyError where the IOMMU faults."""
        mapping = self.at(iova)
        assert iova + length <= mapping.iova + mapping.size
        return ctypes.string_at(mapping.vaddr + iova - mapping.iova, length)

    def at(self, iova: int) -> Mapping:
        """The mapping of an address."""
        for mapping in self.mappings.values():
            if mapping.iova <= iova < mapping.iova + mapping.size:
                return mapping
        raise KeyError(hex(iova))

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        """ioctl(2) on the container."""
        if request == GET_INFO:
            assert isinstance(argument, bytearray)
            return self._get_info(argument)
        if request == MAP_DMA:
            assert isinstance(argument, bytearray)
            return self._map(*Struct("=IIQQQ").unpack(argument))
        if request == UNMAP_DMA:
            assert isinstance(argument, bytearray)
            return self._unmap(argument)
        raise OSError(errno.ENOTTY, "no such ioctl")

    def _get_info(self, info: bytearray) -> int:
        """Nothing but the size that is needed, where the capabilities do not fit (vfio_iommu_type1_get_info)."""
        (argsz,) = Struct("=I").unpack_from(info)
        assert argsz == len(info) >= _INFO.size
        chain = self._capabilities()
        fits = argsz >= _INFO.size + len(chain)
        _INFO.pack_into(
            info,
            0,
            argsz if fits else _INFO.size + len(chain),
            3,
            self.page_sizes,
            _INFO.size if fits else 0,
            0,
        )
        if fits:
            info[_INFO.size : _INFO.size + len(chain)] = chain
        return 0

    def _capabilities(self) -> bytes:
        """Migration first, as the kernel has it: a reader must follow the chain."""
        chain = b""
        at = _INFO.size
        migration = _MIGRATION.size
        chain += _MIGRATION.pack(2, 1, at + migration, 0, 0, PAGE_SIZE, 1 << 20)
        available = at + migration + _DMA_AVAIL.size
        chain += _DMA_AVAIL.pack(3, 1, available if self.ranges else 0, self.entries - len(self.mappings))
        if self.ranges:
            chain += _IOVA_RANGE.pack(1, 1, 0, len(self.ranges), 0)
            chain += b"".join(Struct("=QQ").pack(*one) for one in self.ranges)
        return chain

    def _map(self, argsz: int, flags: int, vaddr: int, iova: int, size: int) -> int:
        """vfio_dma_do_map: the checks in its order."""
        assert argsz == 32
        if not size or (vaddr | iova | size) % PAGE_SIZE or not 0 < flags <= READ | WRITE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if any(one.iova < iova + size and iova < one.iova + one.size for one in self.mappings.values()):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if len(self.mappings) >= self.entries:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.ranges and not any(start <= iova and iova + size - 1 <= last for start, last in self.ranges):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self.locked + size // PAGE_SIZE > self.lockable:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.mappings[iova] = Mapping(iova, size, vaddr, flags)
        return 0

    def _unmap(self, argument: bytearray) -> int:
        """vfio_dma_do_unmap of type1 v2: EINVAL where it would cut a mapping, else how much was there."""
        argsz, flags, iova, size = Struct("=IIQQ").unpack(argument)
        assert (argsz, flags) == (24, 0)
        if self.stubborn:
            raise OSError(errno.EBUSY, "still pinned by a mediated device")
        inside = [
            one for one in self.mappings.values() if one.iova < iova + size and iova < one.iova + one.size
        ]
        if any(one.iova < iova or iova + size < one.iova + one.size for one in inside):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        for one in inside:
            del self.mappings[one.iova]
        Struct("=Q").pack_into(argument, 16, sum(one.size for one in inside))
        return 0


def container(kernel: Type1Kernel) -> VfioContainer:
    """A container over the model, without an fd."""
    return VfioContainer(-1, ioctl=kernel.ioctl)


class VfioFiles:
    """The device files as well: the fds of the container and of one group, until there is a container with an IOMMU.

    ``viable``, ``api_version``, ``extensions`` and ``interrupts_remapped`` are what the machine is like.
    """

    def __init__(self, container: str, group: str, kernel: Type1Kernel) -> None:
        self.paths = {container: "container", group: "group"}
        self.kernel = kernel
        self.refuse_open: dict[str, int] = {}
        self.refuse: dict[int, int] = {}
        self.viable = True
        self.api_version = 0
        self.extensions = {1, 3}
        self.interrupts_remapped = True
        self.fds: dict[int, str] = {}
        self.joined = -1
        self.iommu = 0
        self.devices: list[bytes] = []
        self._open = os.open

    def open(self, path: os.PathLike[str] | str, flags: int, mode: int = 0o777) -> int:
        """open(2)."""
        kind = self.paths.get(os.fspath(path))
        if kind is None:
            return self._open(path, flags, mode)
        if kind in self.refuse_open:
            raise OSError(self.refuse_open[kind], os.strerror(self.refuse_open[kind]))
        assert flags == os.O_RDWR | os.O_CLOEXEC
        fd = self._open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.fds[fd] = kind
        return fd

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        """ioctl(2)."""
        if request in self.refuse:
            raise OSError(self.refuse[request], os.strerror(self.refuse[request]))
        kind = self.fds.get(fd)
        if kind == "group":
            return self._group_ioctl(request, argument)
        assert kind == "container"
        if request == GET_API_VERSION:
            return self.api_version
        if request == CHECK_EXTENSION:
            return int(argument in self.extensions)
        if request == SET_IOMMU:
            assert fd == self.joined
            if not self.interrupts_remapped:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            assert isinstance(argument, int)
            self.iommu = argument
            return 0
        if not self.iommu:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.kernel.ioctl(fd, request, argument)

    def _group_ioctl(self, request: int, argument: bytearray | int) -> int:
        assert isinstance(argument, bytearray)
        if request == GET_STATUS:
            assert Struct("=II").unpack(argument)[0] == 8
            Struct("=II").pack_into(argument, 0, 8, int(self.viable))
        elif request == SET_CONTAINER:
            (self.joined,) = Struct("=i").unpack(argument)
        else:
            assert request == GET_DEVICE_FD
            assert self.iommu
            self.devices.append(bytes(argument))
            return self._open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        return 0
