"""What can be chosen about a virtio GPU before it is plugged in."""

from __future__ import annotations

from dataclasses import dataclass

from devices.virtio_gpu.formats import BYTES_PER_PIXEL
from devices.virtio_gpu.protocol import MAX_SCANOUTS

MIN_SIDE = 64
"""Pixels; Linux takes no narrower and no lower mode from an EDID."""
MAX_SIDE = 16384
"""Pixels; widest and highest screen or resource."""
DEFAULT_MAX_HOSTMEM = 256 << 20
BLOB_PAYS_FROM = 2560 * 1440
"""Pixels of a screen from which on blobs are faster than copies; see docs/architecture.md for how that was measured."""


def check_mode(width: int, height: int) -> None:
    """Raise ValueError unless a screen can have this size in pixels."""
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise ValueError(
            f"a screen cannot be {width}x{height}: choose {MIN_SIDE} to {MAX_SIDE} pixels for width and height"
        )


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """Options of a :class:`devices.virtio_gpu.device.VirtioGpu`.

    ``scanouts``: screens, all connected at first. ``width`` and ``height``: the mode that they prefer, in pixels.
    ``max_hostmem``: bytes that all resources of the guest may take from the host together. ``blob``: offer blob
    resources, which are shown from guest memory without a copy; where None, if the screens are large enough for
    that to be faster. ``edid``: offer EDID. ``identity``: what resource
    UUIDs are derived from; random where empty, so that no two devices give the same.

    Raises ValueError with one line that says what to give instead.
    """

    scanouts: int = 1
    width: int = 1280
    height: int = 800
    max_hostmem: int = DEFAULT_MAX_HOSTMEM
    blob: bool | None = None
    edid: bool = True
    identity: str = ""

    @property
    def offers_blob(self) -> bool:
        """Whether blob resources are offered."""
        return self.width * self.height >= BLOB_PAYS_FROM if self.blob is None else self.blob

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.scanouts <= MAX_SCANOUTS:
            raise ValueError(f"scanouts={self.scanouts}: choose 1 to {MAX_SCANOUTS}")
        check_mode(self.width, self.height)
        needed = self.width * self.height * BYTES_PER_PIXEL
        if self.max_hostmem < needed:
            raise ValueError(
                f"max_hostmem={self.max_hostmem} cannot hold one screen of {self.width}x{self.height}: "
                f"give at least {needed} bytes"
            )
