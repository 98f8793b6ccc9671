"""The device models that come with vgpud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devices.contract import Device
from devices.registry import DeviceModel, Option, flag, number, size
from devices.virtio.pci import VirtioPci
from devices.virtio_gpu.device import VirtioGpu
from devices.virtio_gpu.options import GpuOptions


def _blob(text: str) -> bool | None:
    return None if text == "auto" else flag(text)


def _virtio_gpu(values: Mapping[str, Any]) -> Device:
    return VirtioPci(VirtioGpu(GpuOptions(**values)))


VIRTIO_GPU = DeviceModel(
    name="virtio-gpu",
    kind="gpu",
    description="a virtio GPU (2D) as a modern virtio-pci function",
    features=("edid", "blob", "resource-uuid", "cursor"),
    options=(
        Option("scanouts", "1", number, "screens, 1 to 16"),
        Option("width", "1280", number, "preferred width in pixels"),
        Option("height", "800", number, "preferred height in pixels"),
        Option("max_hostmem", "256M", size, "host memory that the guest's resources may take"),
        Option("blob", "auto", _blob, "on, off or auto: show screens from guest memory, without a copy"),
        Option("edid", "on", flag, "offer EDID"),
    ),
    create=_virtio_gpu,
)

MODELS = (VIRTIO_GPU,)
