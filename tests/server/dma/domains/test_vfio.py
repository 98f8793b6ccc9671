from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from server.dma.address_space import PAGE_SIZE
from server.dma.domains.vfio import MapFlags, VfioContainer
from server.dma.errors import DmaDomainUnavailable
from tests.fds import open_fds
from tests.server.dma.domains import type1_kernel
from tests.server.dma.domains.type1_kernel import RANGES, Type1Kernel, VfioFiles

GROUP = 7


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> VfioFiles:
    files = VfioFiles("/dev/vfio/vfio", f"/dev/vfio/{GROUP}", Type1Kernel())
    monkeypatch.setattr("server.dma.domains.vfio.os.open", files.open)
    monkeypatch.setattr("server.dma.domains.vfio.fcntl.ioctl", files.ioctl)
    return files


def test_a_container_is_joined_by_its_group_before_it_gets_its_iommu(files: VfioFiles) -> None:
    before = open_fds()
    container = VfioContainer.open(GROUP)
    assert files.iommu == 3  # VFIO_TYPE1v2_IOMMU
    assert files.fds[files.joined] == "container"
    assert open_fds() == before + 2
    container.close()
    container.close()
    assert open_fds() == before


def test_reserved_addresses_are_left_out_of_the_ranges(files: VfioFiles) -> None:
    container = VfioContainer.open(GROUP)
    assert container.ranges == tuple((start, last + 1) for start, last in RANGES)
    assert container.page_size == PAGE_SIZE
    container.close()


def test_a_container_of_mediated_devices_alone_takes_any_address(files: VfioFiles) -> None:
    files.kernel.ranges = ()
    container = VfioContainer.open(GROUP)
    assert container.ranges == ((0, 1 << 64),)
    container.close()


def test_what_is_mapped_is_what_the_device_reaches(files: VfioFiles) -> None:
    container = VfioContainer.open(GROUP)
    files.kernel.entries = 10
    container.map_dma(0x10000, 0x7000, 2 * PAGE_SIZE, MapFlags.READ)
    container.map_dma(0x20000, 0x3000, PAGE_SIZE, MapFlags.READ | MapFlags.WRITE)
    assert container.available == 8
    assert list(files.kernel.mappings.values()) == [
        type1_kernel.Mapping(0x10000, 2 * PAGE_SIZE, 0x7000, type1_kernel.READ),
        type1_kernel.Mapping(0x20000, PAGE_SIZE, 0x3000, type1_kernel.READ | type1_kernel.WRITE),
    ]
    container.unmap_dma(0x10000, 2 * PAGE_SIZE)
    assert list(files.kernel.mappings) == [0x20000]
    container.close()


def test_unmapping_what_is_not_there_is_an_error(files: VfioFiles) -> None:
    container = VfioContainer.open(GROUP)
    with pytest.raises(OSError, match="0x0 of 0x1000 bytes"):
        container.unmap_dma(0x10000, PAGE_SIZE)
    container.close()


def test_a_device_of_the_group_is_opened_by_its_pci_address(files: VfioFiles) -> None:
    container = VfioContainer.open(GROUP)
    os.close(container.device("0000:00:04.0"))
    assert files.devices == [b"0000:00:04.0\0"]
    container.close()


def test_a_container_that_somebody_else_set_up_is_used_as_it_is(files: VfioFiles) -> None:
    owner = VfioContainer.open(GROUP)
    before = open_fds()
    passed = os.dup(files.joined)
    files.fds[passed] = "container"
    container = VfioContainer.adopt(passed)
    assert container.ranges == owner.ranges
    with pytest.raises(OSError, match="another process") as caught:
        container.device("0000:00:04.0")
    assert caught.value.errno == errno.ENODEV
    container.close()
    assert open_fds() == before
    owner.close()


def test_a_container_without_an_iommu_cannot_be_adopted_and_stays_the_callers(files: VfioFiles) -> None:
    fd = files.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(DmaDomainUnavailable, match=f"fd {fd} is not a VFIO container with its IOMMU set"):
        VfioContainer.adopt(fd)
    os.close(fd)


@pytest.mark.parametrize("fd", [-1, 10_000, 1 << 40])
def test_a_number_that_is_no_fd_cannot_be_adopted(fd: int) -> None:
    with pytest.raises(DmaDomainUnavailable, match="not a VFIO container"):
        VfioContainer.adopt(fd)


def test_a_file_of_another_kind_cannot_be_adopted() -> None:
    with (
        Path("/dev/null").open("rb") as other,
        pytest.raises(DmaDomainUnavailable, match="not a VFIO container"),
    ):
        VfioContainer.adopt(other.fileno())


@pytest.mark.parametrize(
    ("kind", "code", "fix"),
    [
        ("container", errno.ENOENT, "there is no /dev/vfio/vfio: load the module vfio-pci"),
        ("container", errno.ENODEV, "load the module vfio-pci"),
        ("container", errno.EACCES, "run as root"),
        ("group", errno.ENOENT, "there is no /dev/vfio/7: bind the devices of IOMMU group 7 to vfio-pci"),
        ("group", errno.EBUSY, "another process has it; let that pass its container"),
        ("group", errno.EPERM, "give this user the device file"),
    ],
)
def test_a_device_file_that_cannot_be_opened_is_one_line_that_names_the_fix(
    files: VfioFiles, kind: str, code: int, fix: str
) -> None:
    before = open_fds()
    files.refuse_open[kind] = code
    with pytest.raises(DmaDomainUnavailable, match=fix) as caught:
        VfioContainer.open(GROUP)
    assert "\n" not in str(caught.value)
    assert open_fds() == before


@pytest.mark.parametrize(
    ("machine", "fix"),
    [
        ({"viable": False}, "all devices of IOMMU group 7 must be bound to vfio-pci, or to nothing"),
        ({"api_version": 1}, "another version"),
        ({"extensions": {1}}, "load the module vfio_iommu_type1"),
        ({"interrupts_remapped": False}, r"vfio_iommu_type1\.allow_unsafe_interrupts=1"),
    ],
)
def test_a_machine_that_is_not_set_up_is_one_line_that_names_the_fix(
    files: VfioFiles, machine: dict[str, object], fix: str
) -> None:
    before = open_fds()
    for name, value in machine.items():
        setattr(files, name, value)
    with pytest.raises(DmaDomainUnavailable, match=fix) as caught:
        VfioContainer.open(GROUP)
    assert "\n" not in str(caught.value)
    assert open_fds() == before


@pytest.mark.parametrize(
    "request_number",
    [
        type1_kernel.GET_API_VERSION,
        type1_kernel.CHECK_EXTENSION,
        type1_kernel.SET_IOMMU,
        type1_kernel.GET_STATUS,
        type1_kernel.SET_CONTAINER,
        type1_kernel.GET_INFO,
    ],
)
def test_any_other_refusal_names_the_group_and_leaves_no_fd_behind(
    files: VfioFiles, request_number: int
) -> None:
    before = open_fds()
    files.refuse[request_number] = errno.EINVAL
    with pytest.raises(DmaDomainUnavailable, match="IOMMU group 7: Invalid argument"):
        VfioContainer.open(GROUP)
    assert open_fds() == before


def test_where_there_is_no_vfio_the_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("server.dma.domains.vfio._CONTAINER", tmp_path / "vfio")
    with pytest.raises(DmaDomainUnavailable, match=r"there is no .*/vfio: load the module vfio-pci"):
        VfioContainer.open(GROUP)
