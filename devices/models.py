"""The device models that come with vgpud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devices.bochs_display import BochsDisplay, BochsDisplayOptions
from devices.contract import Device
from devices.edu import Edu
from devices.registry import DeviceModel, Option, flag, number, size
from devices.virtio.pci import VirtioPci
from devices.virtio_gpu.device import VirtioGpu
from devices.virtio_gpu.options import GpuOptions


def _blob(text: str) -> bool | None:
    return None if text == "auto" else flag(text)


def _virtio_gpu(values: Mapping[str, Any]) -> Device:
    options = {name: value for name, value in values.items() if name != MSIX.name}
    return VirtioPci(VirtioGpu(GpuOptions(**options)), msix=values[MSIX.name])


def _address_mask(text: str) -> int:
    try:
        mask = int(text, 0)
    except ValueError:
        mask = -1
    if not 0 <= mask < 1 << 64:
        raise ValueError(f"{text!r} is no mask of 64-bit addresses; write for example 0xfffffff")
    return mask


def _edu(values: Mapping[str, Any]) -> Device:
    return Edu(**values)


def _bochs_display(values: Mapping[str, Any]) -> Device:
    return BochsDisplay(BochsDisplayOptions(**values))


MSIX = Option("msix", "on", flag, "have MSI-X; off for INTx alone, which QEMU can unplug")
"""An option of the PCI function, of every model that would have MSI-X."""

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
        MSIX,
    ),
    create=_virtio_gpu,
)

EDU = DeviceModel(
    name="edu",
    description="QEMU's educational device: registers, interrupts and DMA to learn with",
    features=("intx", "msi", "dma"),
    options=(Option("dma_mask", "0xfffffff", _address_mask, "the bits of a guest address that its DMA has"),),
    create=_edu,
)

BOCHS_DISPLAY = DeviceModel(
    name="bochs-display",
    kind="gpu",
    description="a framebuffer with the Bochs VBE display interface, for firmware and simple drivers",
    features=("edid",),
    options=(
        Option("width", "1280", number, "preferred width in pixels"),
        Option("height", "800", number, "preferred height in pixels"),
        Option("vgamem", "16M", size, "size of the framebuffer, a power of two from 4M to 256M"),
        Option("edid", "on", flag, "offer EDID"),
    ),
    create=_bochs_display,
)

MODELS = (VIRTIO_GPU, EDU, BOCHS_DISPLAY)
