"""What can be chosen about a Bochs display before it is plugged in."""

from __future__ import annotations

from dataclasses import dataclass

from devices.bochs_display.constants import MAX_XRES, MAX_YRES

BYTES_PER_PIXEL = 4
"""Of the mode that the screen prefers, and of what a screenshot has."""
MIN_SIDE = 64
"""Pixels; Linux takes no narrower and no lower mode from an EDID."""
MIN_VGAMEM = 4 << 20
"""Bytes; Linux drives no display with less (drivers/gpu/drm/tiny/bochs.c)."""
MAX_VGAMEM = 256 << 20
"""Bytes; more does not fit well below 4 GiB, where a 32-bit BAR has to be."""


@dataclass(frozen=True, slots=True)
class BochsDisplayOptions:
    """Options of a :class:`devices.bochs_display.device.BochsDisplay`.

    ``width`` and ``height``: the mode that the screen prefers, in pixels. ``vgamem``: bytes of the framebuffer.
    ``edid``: say by EDID what the screen prefers.

    Raises ValueError with one line that says what to give instead.
    """

    width: int = 1280
    height: int = 800
    vgamem: int = 16 << 20
    edid: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if not MIN_VGAMEM <= self.vgamem <= MAX_VGAMEM or self.vgamem & (self.vgamem - 1):
            raise ValueError(
                f"vgamem={self.vgamem}: give a power of two from {MIN_VGAMEM >> 20}M to {MAX_VGAMEM >> 20}M"
            )
        self.check_mode(self.width, self.height)

    def check_mode(self, width: int, height: int) -> None:
        """Raise ValueError unless the screen can prefer this size in pixels."""
        if not (MIN_SIDE <= width <= MAX_XRES and MIN_SIDE <= height <= MAX_YRES):
            raise ValueError(
                f"a screen cannot be {width}x{height}: choose {MIN_SIDE} to {MAX_XRES} pixels for width, "
                f"and {MIN_SIDE} to {MAX_YRES} for height"
            )
        needed = width * height * BYTES_PER_PIXEL
        if needed > self.vgamem:
            raise ValueError(
                f"vgamem={self.vgamem} cannot hold one screen of {width}x{height}: give at least {needed} bytes"
            )
