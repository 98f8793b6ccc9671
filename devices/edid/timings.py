"""Video timings with reduced blanking for any mode (VESA Coordinated Video Timings 1.2, reduced blanking version 2)."""

from __future__ import annotations

from dataclasses import dataclass

H_FRONT = 8
H_SYNC = 32
H_BLANK = 80
V_FRONT_MIN = 1
V_SYNC = 8
V_BACK = 6
MIN_V_BLANK_NS = 460_000
CLOCK_STEP_HZ = 1000

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Timing:
    """A progressive mode: pixels across, lines down, the pixel clock in Hz; sync polarity is +H -V."""

    width: int
    height: int
    v_blank: int
    pixel_clock: int
    h_front: int = H_FRONT
    h_sync: int = H_SYNC
    h_blank: int = H_BLANK
    v_sync: int = V_SYNC
    v_back: int = V_BACK

    @property
    def v_front(self) -> int:
        """Lines between the picture and the vertical sync."""
        return self.v_blank - self.v_sync - self.v_back

    @property
    def refresh(self) -> float:
        """Frames per second."""
        return self.pixel_clock / ((self.width + self.h_blank) * (self.height + self.v_blank))


def reduced_blanking(width: int, height: int, refresh: int) -> Timing:
    """The timing of ``width`` by ``height`` pixels at ``refresh`` Hz.

    Version 2 and not 1, since it is defined for every refresh rate, and for widths that are no multiple of 8.
    """
    # Lines that cover the least vertical blanking time, from the line period that leaves that time free.
    picture_ns = SECOND_NS - MIN_V_BLANK_NS * refresh
    lines = MIN_V_BLANK_NS * height * refresh // picture_ns + 1
    v_blank = max(lines, V_FRONT_MIN + V_SYNC + V_BACK)
    pixels = (width + H_BLANK) * (height + v_blank)
    return Timing(width, height, v_blank, pixels * refresh // CLOCK_STEP_HZ * CLOCK_STEP_HZ)
