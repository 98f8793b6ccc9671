"""Structures and numbers of VFIO and io_uring against the C headers, as the compiler sees them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.dma.domains import page_pinning, vfio

CONSTANTS: dict[str, int] = {
    "VFIO_API_VERSION": vfio.VFIO_API_VERSION,
    "VFIO_TYPE1v2_IOMMU": vfio.VFIO_TYPE1V2_IOMMU,
    **{f"VFIO_{request.name}": request for request in vfio.VfioIoctl},
    **{f"VFIO_GROUP_FLAGS_{flag.name}": flag for flag in vfio.GroupFlags},
    **{f"VFIO_DMA_MAP_FLAG_{flag.name}": flag for flag in vfio.MapFlags},
    **{f"VFIO_IOMMU_INFO_{flag.name}": flag for flag in vfio.IommuInfoFlags},
    "VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE": vfio.IommuCapability.IOVA_RANGE,
    "VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL": vfio.IommuCapability.DMA_AVAIL,
    "SYS_io_uring_setup": page_pinning.SYS_IO_URING_SETUP,
    "SYS_io_uring_register": page_pinning.SYS_IO_URING_REGISTER,
    "IORING_UNREGISTER_BUFFERS": page_pinning.IORING_UNREGISTER_BUFFERS,
    "IORING_REGISTER_BUFFERS2": page_pinning.IORING_REGISTER_BUFFERS2,
    "IORING_REGISTER_BUFFERS_UPDATE": page_pinning.IORING_REGISTER_BUFFERS_UPDATE,
    "IORING_RSRC_REGISTER_SPARSE": page_pinning.IORING_RSRC_REGISTER_SPARSE,
    "sizeof(struct io_uring_params)": page_pinning.PARAMS_BYTES,
    "sizeof(struct io_uring_rsrc_register)": page_pinning.RSRC_REGISTER.size,
    "sizeof(struct io_uring_rsrc_update2)": page_pinning.RSRC_UPDATE2.size,
    "sizeof(struct iovec)": page_pinning.IOVEC.size,
    "sizeof(struct vfio_iommu_type1_dma_map)": vfio.MAP_DMA.size,
    "offsetof(struct vfio_iommu_type1_dma_unmap, data)": vfio.UNMAP_DMA.size,
    "sizeof(struct vfio_group_status)": vfio.GROUP_STATUS.size,
    "sizeof(struct vfio_iommu_type1_info)": vfio.IOMMU_INFO.size,
    "sizeof(struct vfio_info_cap_header)": vfio.CAPABILITY.size,
    "offsetof(struct vfio_iommu_type1_info_cap_iova_range, nr_iovas)": vfio.CAPABILITY.size,
    "offsetof(struct vfio_iommu_type1_info_cap_iova_range, iova_ranges)": vfio.RANGES_AT,
    "offsetof(struct vfio_iommu_type1_info_dma_avail, avail)": vfio.CAPABILITY.size,
    "sizeof(struct vfio_iova_range)": vfio.RANGE.size,
}
"""By C expression."""

FIELDS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "struct vfio_iommu_type1_dma_map": (
        vfio.MAP_DMA.pack(1, 2, 3, 4, 5), ("argsz", "flags", "vaddr", "iova", "size"),
    ),
    "struct vfio_iommu_type1_dma_unmap": (vfio.UNMAP_DMA.pack(1, 2, 3, 4), ("argsz", "flags", "iova", "size")),
    "struct vfio_group_status": (vfio.GROUP_STATUS.pack(1, 2), ("argsz", "flags")),
    "struct vfio_iommu_type1_info": (
        vfio.IOMMU_INFO.pack(1, 2, 3, 4, 0), ("argsz", "flags", "iova_pgsizes", "cap_offset"),
    ),
    "struct vfio_info_cap_header": (vfio.CAPABILITY.pack(1, 2, 3), ("id", "version", "next")),
    "struct vfio_iova_range": (vfio.RANGE.pack(1, 2), ("start", "end")),
    "struct io_uring_rsrc_register": (
        page_pinning.RSRC_REGISTER.pack(1, 2, 3, 4, 5), ("nr", "flags", "resv2", "data", "tags"),
    ),
    "struct io_uring_rsrc_update2": (
        page_pinning.RSRC_UPDATE2.pack(1, 2, 3, 4, 5, 6), ("offset", "resv", "data", "tags", "nr", "resv2"),
    ),
    "struct iovec": (page_pinning.IOVEC.pack(1, 2), ("iov_base", "iov_len")),
}  # fmt: skip
"""Packed with the numbers 1, 2, 3 ... in the named fields."""

PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/io_uring.h>
#include <linux/vfio.h>

int main(void)
{
    LINES
    return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The constants, then the fields of the packed structures, as a C program sees them."""
    folder: Path = tmp_path_factory.mktemp("probe")
    lines = [f'printf("%lld\\n", (long long)({expression}));' for expression in CONSTANTS]
    for name, (data, fields) in FIELDS.items():
        initial = ", ".join(str(byte) for byte in data)
        lines += [f"{{ unsigned char data[] = {{{initial}}}; {name} it; memcpy(&it, data, sizeof data);"]
        lines += [f'printf("%lld\\n", (long long)it.{field});' for field in fields]
        lines += ["}"]
    (folder / "probe.c").write_text(PROGRAM.replace("LINES", "\n    ".join(lines)))
    subprocess.run(["gcc", "-o", "probe", "probe.c"], cwd=folder, check=True)
    output = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.splitlines()]


def test_constants_and_sizes_are_those_of_the_headers(compiled: list[int]) -> None:
    found = dict(zip(CONSTANTS, compiled, strict=False))
    # Linux 6.1 does not name the padding at the end, newer ones do.
    assert found == {name: int(value) for name, value in CONSTANTS.items()}


def test_fields_are_where_the_headers_have_them(compiled: list[int]) -> None:
    values = iter(compiled[len(CONSTANTS) :])
    for name, (_, fields) in FIELDS.items():
        assert [next(values) for _ in fields] == list(range(1, len(fields) + 1)), name
