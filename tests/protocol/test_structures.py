"""Sizes, offsets and constants against the C headers, as the compiler sees them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from protocol import (
    BitmapRequest,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    DeviceState,
    DmaLoggingControl,
    DmaLoggingReport,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    Feature,
    FeatureFlags,
    IoEventFdFlags,
    IrqAction,
    IrqData,
    IrqFlags,
    IrqInfo,
    LoggingRange,
    MigrationFlags,
    MigrationState,
    PciIrq,
    PciRegion,
    RegionCapabilityId,
    RegionFlags,
    RegionInfo,
    RegionType,
    SetIrqs,
    SparseArea,
    SparseMmap,
)
from protocol.vfio import FEATURE_MASK, PCI_NUM_IRQS, PCI_NUM_REGIONS
from tests.protocol.layout import field

CONSTANTS: dict[str, int] = {
    **{f"VFIO_PCI_{region.name}_REGION_INDEX": region for region in PciRegion},
    "VFIO_PCI_NUM_REGIONS": PCI_NUM_REGIONS,
    **{f"VFIO_PCI_{irq.name}_IRQ_INDEX": irq for irq in PciIrq},
    "VFIO_PCI_NUM_IRQS": PCI_NUM_IRQS,
    **{f"VFIO_DEVICE_FLAGS_{flag.name}": flag for flag in DeviceFlags},
    **{f"VFIO_REGION_INFO_FLAG_{flag.name}": flag for flag in RegionFlags},
    **{f"VFIO_REGION_INFO_CAP_{number.name}": number for number in RegionCapabilityId},
    **{f"VFIO_IRQ_INFO_{flag.name}": flag for flag in IrqFlags},
    **{f"VFIO_IRQ_SET_DATA_{data.name}": data for data in IrqData},
    **{f"VFIO_IRQ_SET_ACTION_{action.name}": action for action in IrqAction},
    "VFIO_DMA_MAP_FLAG_READ": DmaMapFlags.READ,
    "VFIO_DMA_MAP_FLAG_WRITE": DmaMapFlags.WRITE,
    **{f"VFIO_DMA_UNMAP_FLAG_{flag.name}": flag for flag in DmaUnmapFlags},
    **{f"VFIO_DEVICE_FEATURE_{feature.name}": feature for feature in Feature},
    **{f"VFIO_DEVICE_FEATURE_{flag.name}": flag for flag in FeatureFlags},
    "VFIO_DEVICE_FEATURE_MASK": FEATURE_MASK,
    "VFIO_MIGRATION_STOP_COPY": MigrationFlags.STOP_COPY,
    "VFIO_MIGRATION_P2P": MigrationFlags.P2P,
    # Linux 6.1 has no PRE_COPY states yet.
    **{f"VFIO_DEVICE_STATE_{state.name}": state for state in DeviceState if "PRE_COPY" not in state.name},
    **{f"KVM_IOEVENTFD_FLAG_{flag.name}": flag for flag in IoEventFdFlags},
}

PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <linux/kvm.h>
#include <linux/vfio.h>

#define CONSTANT(name) printf("%s %lld\\n", #name, (long long)(name));
#define FIELD(type, field) printf("%s.%s %zu\\n", #type, #field, offsetof(struct type, field));

int main(void)
{
    LINES
    return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a C program says: constants by name, and offsets by ``struct.field``."""
    folder: Path = tmp_path_factory.mktemp("probe")
    lines = [f"CONSTANT({name})" for name in CONSTANTS]
    paths = {path for _, _, expected in PACKED.values() for path in expected}
    lines += [f"FIELD({path.replace('.', ', ')})" for path in sorted(paths)]
    (folder / "probe.c").write_text(PROGRAM.replace("LINES", "\n    ".join(lines)))
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", "probe", "probe.c"], cwd=folder, check=True)
    output = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_constants_have_the_values_of_the_headers(compiled: dict[str, int]) -> None:
    assert {name: compiled[name] for name in CONSTANTS} == {
        name: int(value) for name, value in CONSTANTS.items()
    }


Expected = dict[str, tuple[int, int]]
"""By ``struct.field``: how many bytes it has, and which value it should be found to have there."""

PACKED: dict[str, tuple[bytes, int, Expected]] = {
    "device info": (
        DeviceInfo(DeviceFlags.PCI, 9, 5).pack(),
        0,
        {
            "vfio_device_info.argsz": (4, 16),
            "vfio_device_info.flags": (4, DeviceFlags.PCI),
            "vfio_device_info.num_regions": (4, 9),
            "vfio_device_info.num_irqs": (4, 5),
        },
    ),
    "region info": (
        RegionInfo(2, RegionFlags.READ, 0x3000, 0x5000, (RegionType(6, 7),)).pack(),
        0,
        {
            "vfio_region_info.argsz": (4, 48),
            "vfio_region_info.flags": (4, RegionFlags.READ | RegionFlags.CAPS),
            "vfio_region_info.index": (4, 2),
            "vfio_region_info.cap_offset": (4, 32),
            "vfio_region_info.size": (8, 0x3000),
            "vfio_region_info.offset": (8, 0x5000),
        },
    ),
    "region type": (
        RegionInfo(0, RegionFlags.NONE, 0, 0, (RegionType(6, 7),)).pack(),
        32,
        {
            "vfio_info_cap_header.id": (2, RegionCapabilityId.TYPE),
            "vfio_info_cap_header.version": (2, 1),
            "vfio_info_cap_header.next": (4, 0),
            "vfio_region_info_cap_type.type": (4, 6),
            "vfio_region_info_cap_type.subtype": (4, 7),
        },
    ),
    "sparse mmap": (
        RegionInfo(0, RegionFlags.NONE, 0, 0, (SparseMmap((SparseArea(8, 9),)),)).pack(),
        32,
        {
            "vfio_info_cap_header.id": (2, RegionCapabilityId.SPARSE_MMAP),
            "vfio_region_info_cap_sparse_mmap.nr_areas": (4, 1),
            "vfio_region_info_cap_sparse_mmap.areas": (8, 8),
        },
    ),
    "irq info": (
        IrqInfo(3, IrqFlags.EVENTFD, 7).pack(),
        0,
        {
            "vfio_irq_info.argsz": (4, 16),
            "vfio_irq_info.flags": (4, IrqFlags.EVENTFD),
            "vfio_irq_info.index": (4, 3),
            "vfio_irq_info.count": (4, 7),
        },
    ),
    "irq set": (
        SetIrqs(2, 5, 1, IrqData.BOOL, IrqAction.MASK, (True,)).pack(),
        0,
        {
            "vfio_irq_set.argsz": (4, 21),
            "vfio_irq_set.flags": (4, IrqData.BOOL | IrqAction.MASK),
            "vfio_irq_set.index": (4, 2),
            "vfio_irq_set.start": (4, 5),
            "vfio_irq_set.count": (4, 1),
            "vfio_irq_set.data": (1, 1),
        },
    ),
    # vaddr of VFIO is where vfio-user has the offset in the file.
    "dma map": (
        DmaMap(0x7000, 0x1000, DmaMapFlags.READ, 0x3000).pack(),
        0,
        {
            "vfio_iommu_type1_dma_map.argsz": (4, 32),
            "vfio_iommu_type1_dma_map.flags": (4, DmaMapFlags.READ),
            "vfio_iommu_type1_dma_map.vaddr": (8, 0x3000),
            "vfio_iommu_type1_dma_map.iova": (8, 0x7000),
            "vfio_iommu_type1_dma_map.size": (8, 0x1000),
        },
    ),
    "dma unmap": (
        DmaUnmap(0x7000, 0x1000, DmaUnmapFlags.GET_DIRTY_BITMAP, BitmapRequest(4096, 8)).pack(),
        0,
        {
            "vfio_iommu_type1_dma_unmap.argsz": (4, 48),
            "vfio_iommu_type1_dma_unmap.flags": (4, DmaUnmapFlags.GET_DIRTY_BITMAP),
            "vfio_iommu_type1_dma_unmap.iova": (8, 0x7000),
            "vfio_iommu_type1_dma_unmap.size": (8, 0x1000),
            "vfio_iommu_type1_dma_unmap.data": (8, 4096),
        },
    ),
    "bitmap": (
        DmaUnmap(0, 0x1000, DmaUnmapFlags.GET_DIRTY_BITMAP, BitmapRequest(4096, 8)).pack(),
        24,
        {"vfio_bitmap.pgsize": (8, 4096), "vfio_bitmap.size": (8, 8)},
    ),
    "feature": (
        DeviceFeature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, b"\5").pack(),
        0,
        {
            "vfio_device_feature.argsz": (4, 9),
            "vfio_device_feature.flags": (4, FeatureFlags.SET | Feature.MIG_DEVICE_STATE),
            "vfio_device_feature.data": (1, 5),
        },
    ),
    "migration state": (
        MigrationState(DeviceState.RESUMING).pack(),
        0,
        {
            "vfio_device_feature_mig_state.device_state": (4, 4),
            "vfio_device_feature_mig_state.data_fd": (4, 0xFFFFFFFF),
        },
    ),
    "logging control": (
        DmaLoggingControl(4096, (LoggingRange(1, 2),)).pack(),
        0,
        {
            "vfio_device_feature_dma_logging_control.page_size": (8, 4096),
            "vfio_device_feature_dma_logging_control.num_ranges": (4, 1),
            # In vfio-user the ranges are here, in VFIO a pointer to them.
            "vfio_device_feature_dma_logging_control.ranges": (8, 1),
        },
    ),
    "logging range": (
        DmaLoggingControl(4096, (LoggingRange(1, 2),)).pack(),
        16,
        {
            "vfio_device_feature_dma_logging_range.iova": (8, 1),
            "vfio_device_feature_dma_logging_range.length": (8, 2),
        },
    ),
    "logging report": (
        DmaLoggingReport(0x1000, 0x2000, 4096, b"\3" + bytes(7)).pack(),
        0,
        {
            "vfio_device_feature_dma_logging_report.iova": (8, 0x1000),
            "vfio_device_feature_dma_logging_report.length": (8, 0x2000),
            "vfio_device_feature_dma_logging_report.page_size": (8, 4096),
            "vfio_device_feature_dma_logging_report.bitmap": (8, 3),
        },
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_fields_lie_where_the_compiler_puts_them(compiled: dict[str, int], name: str) -> None:
    payload, start, expected = PACKED[name]
    found = {path: field(payload, start + compiled[path], size) for path, (size, _) in expected.items()}
    assert found == {path: int(value) for path, (_, value) in expected.items()}
