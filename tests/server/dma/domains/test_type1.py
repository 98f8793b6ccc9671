"""The type1 domain against a model of the kernel's rules. Real ones are in tests/guest/test_dma_domains.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import pytest

from devices.contract import DmaSegment
from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domain import DmaDomain, FileRun
from server.dma.domains import vfio
from server.dma.domains.type1 import Type1Domain
from server.dma.domains.vfio import MapFlags, VfioContainer, VfioIoctl
from server.dma.errors import DmaDomainUnavailable
from tests.server.dma.memory_model import RETAIN, SETTINGS, MemoryModel
from tests.server.dma.support import memfd, open_fds

RANGES = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 48) - 1))
"""What an Intel IOMMU leaves beside the window of its interrupts, 0xfee00000 to 0xfeefffff; first and last."""
READ_WRITE = MapFlags.READ | MapFlags.WRITE

_MAP = Struct("=IIQQQ")
_UNMAP = Struct("=IIQQ")
_INFO = Struct("=IIQII")
_RANGES = Struct("=HHIII")
_AVAIL = Struct("=HHII")
_RANGE = Struct("=QQ")


class FakeVfio:
    """The ioctls of a container as vfio_iommu_type1.c answers them, v2: a mapping is never cut in two."""

    def __init__(self, entries: int = 1 << 16) -> None:
        self.mappings: dict[int, tuple[int, int, int]] = {}
        self.entries = entries
        self.stuck = False

    def ioctl(self, _fd: int, request: int, argument: bytearray | int) -> int:
        assert isinstance(argument, bytearray)
        if request == VfioIoctl.IOMMU_GET_INFO:
            self._info(argument)
        elif request == VfioIoctl.IOMMU_MAP_DMA:
            self._map(*_MAP.unpack(argument))
        else:
            assert request == VfioIoctl.IOMMU_UNMAP_DMA
            self._unmap(*_UNMAP.unpack(argument))
        return 0

    def _info(self, argument: bytearray) -> None:
        ranges = _RANGES.pack(1, 1, 24 + 16 + 16 * len(RANGES), len(RANGES), 0)
        ranges += b"".join(_RANGE.pack(*one) for one in RANGES)
        whole = ranges + _AVAIL.pack(3, 1, 0, self.entries - len(self.mappings))
        size = _INFO.size + len(whole)
        argument[: _INFO.size] = _INFO.pack(size, 3, PAGE_SIZE, _INFO.size if len(argument) >= size else 0, 0)
        argument[_INFO.size : len(argument)] = whole[: len(argument) - _INFO.size]

    def _map(self, argsz: int, flags: int, vaddr: int, iova: int, size: int) -> None:
        assert argsz == _MAP.size
        if not size or (vaddr | iova | size) % PAGE_SIZE or not flags or flags & ~3:
            raise OSError(errno.EINVAL, "Invalid argument")
        if any(
            iova < start + length and start < iova + size for start, (length, _, _) in self.mappings.items()
        ):
            raise OSError(errno.EEXIST, "File exists")
        if not any(first <= iova and iova + size - 1 <= last for first, last in RANGES):
            raise OSError(errno.EINVAL, "Invalid argument")
        if len(self.mappings) >= self.entries:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.mappings[iova] = size, vaddr, flags

    def _unmap(self, argsz: int, flags: int, iova: int, size: int) -> None:
        assert (argsz, flags) == (_UNMAP.size, 0)
        if self.stuck:
            raise OSError(errno.EBUSY, "Device or resource busy")
        for start, (length, _, _) in list(self.mappings.items()):
            if start < iova + size and iova < start + length:
                if start < iova or start + length > iova + size:
                    raise OSError(errno.EINVAL, "Invalid argument")
                del self.mappings[start]

    def address_at(self, iova: int) -> int:
        """The CPU's address of what a device finds at ``iova``."""
        [address] = [
            vaddr + iova - start
            for start, (length, vaddr, _) in self.mappings.items()
            if start <= iova < start + length
        ]
        return address

    def pages(self) -> list[int]:
        """The CPU's addresses of all mapped pages."""
        return [
            vaddr + offset
            for length, vaddr, _ in self.mappings.values()
            for offset in range(0, length, PAGE_SIZE)
        ]


@pytest.fixture
def kernel() -> FakeVfio:
    return FakeVfio()


@pytest.fixture
def domain(kernel: FakeVfio) -> Type1Domain:
    return Type1Domain(VfioContainer(-1, ioctl=kernel.ioctl))


@pytest.fixture
def backing() -> Iterator[BackingFile]:
    files = BackingFiles(lambda _: None)
    backing = files.acquire(memfd(32), 0, 32 * PAGE_SIZE, writable=True)
    yield backing
    files.release(backing)


def run(backing: BackingFile, page: int, count: int = 1, *, may_write: bool = True) -> FileRun:
    return FileRun(backing, page * PAGE_SIZE, count * PAGE_SIZE, may_write)


def test_a_scatter_list_is_one_segment_of_as_many_mappings(
    domain: Type1Domain, kernel: FakeVfio, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 9), run(backing, 2, 3), run(backing, 5)], writable=True)
    assert (segment.length, len(kernel.mappings)) == (5 * PAGE_SIZE, 3)
    for index, page in enumerate((9, 2, 3, 4, 5)):
        assert (
            kernel.address_at(segment.dma_addr + index * PAGE_SIZE)
            == backing.space.address + page * PAGE_SIZE
        )
    domain.unmap(*segment)
    assert kernel.mappings == {}


def test_a_mapping_permits_what_the_client_does(
    domain: Type1Domain, kernel: FakeVfio, backing: BackingFile
) -> None:
    domain.map_runs([run(backing, 1), run(backing, 2, may_write=False)], writable=False)
    assert [flags for _, _, flags in kernel.mappings.values()] == [READ_WRITE, MapFlags.READ]


def test_no_address_is_zero_or_beyond_what_the_device_reaches_or_in_the_window_of_interrupts(
    kernel: FakeVfio, backing: BackingFile
) -> None:
    narrow = Type1Domain(VfioContainer(-1, ioctl=kernel.ioctl), dma_bits=14)
    assert narrow.map_runs([run(backing, 1, 3)], writable=True) == [DmaSegment(PAGE_SIZE, 3 * PAGE_SIZE)]
    with pytest.raises(OSError, match="no free IO virtual address"):
        narrow.map_runs([run(backing, 8)], writable=True)
    with pytest.raises(DmaDomainUnavailable, match="12 bits"):
        Type1Domain(VfioContainer(-1, ioctl=kernel.ioctl), dma_bits=12)


def test_a_part_of_a_mapping_lingers_until_the_rest_is_unmapped(
    domain: Type1Domain, kernel: FakeVfio, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 4, 4)], writable=True)
    domain.unmap(segment.dma_addr + PAGE_SIZE, 2 * PAGE_SIZE)
    assert domain.stats()["lingering_pages"] == 2
    assert len(kernel.mappings) == 1
    domain.unmap(segment.dma_addr, PAGE_SIZE)
    domain.unmap(segment.dma_addr + 3 * PAGE_SIZE, PAGE_SIZE)
    assert (domain.stats()["lingering_pages"], kernel.mappings) == (0, {})


def test_a_page_that_lingers_is_mapped_again_where_it_is(
    domain: Type1Domain, kernel: FakeVfio, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 4, 4)], writable=True)
    second = segment.dma_addr + PAGE_SIZE
    domain.unmap(second, PAGE_SIZE)
    again = domain.map_runs([run(backing, 4, 2), run(backing, 20)], writable=True)
    assert DmaSegment(second, PAGE_SIZE) in again
    assert sorted(kernel.pages()) == sorted(
        backing.space.address + page * PAGE_SIZE for page in (4, 4, 5, 6, 7, 20)
    )
    domain.unmap(segment.dma_addr, 4 * PAGE_SIZE)
    assert domain.stats()["lingering_pages"] == 0


def test_an_iommu_that_is_full_is_out_of_memory_and_leaves_nothing_mapped(
    domain: Type1Domain, kernel: FakeVfio, backing: BackingFile
) -> None:
    kernel.entries = 2
    with pytest.raises(OSError, match="dma_entry_limit") as caught:
        domain.map_runs([run(backing, page) for page in (1, 3, 5)], writable=True)
    assert caught.value.errno == errno.ENOMEM
    assert kernel.mappings == {}
    [segment] = domain.map_runs([run(backing, 1), run(backing, 3)], writable=True)
    assert segment.dma_addr == PAGE_SIZE
    assert domain.stats() == {"iommu_mappings": 2, "iommu_mappings_left": 0, "lingering_pages": 0}


def test_what_cannot_be_unmapped_keeps_its_addresses_and_is_tried_again(
    domain: Type1Domain, kernel: FakeVfio, backing: BackingFile
) -> None:
    [first] = domain.map_runs([run(backing, 1)], writable=True)
    kernel.stuck = True
    domain.unmap(*first)
    [second] = domain.map_runs([run(backing, 2)], writable=True)
    assert second.dma_addr != first.dma_addr
    kernel.stuck = False
    domain.unmap(*second)
    assert kernel.mappings == {}


def test_a_file_that_is_read_only_is_never_written(kernel: FakeVfio) -> None:
    files = BackingFiles(lambda _: None)
    fd = memfd(2)
    backing = files.acquire(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 0, PAGE_SIZE, writable=False)
    os.close(fd)
    domain = Type1Domain(VfioContainer(-1, ioctl=kernel.ioctl))
    [segment] = domain.map_runs([run(backing, 0)], writable=False)
    assert [flags for _, _, flags in kernel.mappings.values()] == [MapFlags.READ]
    with pytest.raises(OSError, match="reading only") as caught:
        domain.make_writable(*segment)
    assert caught.value.errno == errno.EPERM
    domain.unmap(*segment)
    files.release(backing)


def test_without_vfio_it_says_what_to_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vfio, "_CONTAINER", tmp_path / "vfio")
    with pytest.raises(DmaDomainUnavailable, match=r"there is no .*/vfio: load the module vfio-pci"):
        VfioContainer.open(0)


def test_without_the_group_it_says_what_to_bind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = open_fds()
    (tmp_path / "vfio").touch()
    monkeypatch.setattr(vfio, "_CONTAINER", tmp_path / "vfio")
    monkeypatch.setattr(vfio, "_GROUPS", tmp_path)
    monkeypatch.setattr(vfio, "_check_type1", lambda _: None)
    with pytest.raises(
        DmaDomainUnavailable, match=r"there is no .*/7: bind the devices of IOMMU group 7 to vfio-pci"
    ):
        VfioContainer.open(7)
    (tmp_path / "7").touch()
    with pytest.raises(DmaDomainUnavailable, match="VFIO refuses IOMMU group 7"):
        VfioContainer.open(7)
    assert open_fds() == before


def test_an_fd_that_is_no_container_is_named() -> None:
    read, write = os.pipe()
    with pytest.raises(DmaDomainUnavailable, match=f"fd {read} is not a VFIO container"):
        VfioContainer.adopt(read)
    os.close(read)
    os.close(write)


class Type1Model(MemoryModel):
    """As a real IOMMU would be used; the kernel's own model checks every mapping."""

    def make_domain(self) -> DmaDomain:
        self.kernel = FakeVfio()
        return Type1Domain(VfioContainer(-1, ioctl=self.kernel.ioctl))

    def teardown(self) -> None:
        super().teardown()
        assert self.kernel.mappings == {}


class RetainingType1Model(Type1Model):
    retain = RETAIN


Type1Model.TestCase.settings = SETTINGS
RetainingType1Model.TestCase.settings = SETTINGS
TestType1 = Type1Model.TestCase
TestRetainingType1 = RetainingType1Model.TestCase
