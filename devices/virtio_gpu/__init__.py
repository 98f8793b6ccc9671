"""A virtio GPU: :class:`VirtioGpu` with :class:`GpuOptions`."""

from devices.virtio_gpu.device import VirtioGpu
from devices.virtio_gpu.options import GpuOptions

__all__ = ["GpuOptions", "VirtioGpu"]
