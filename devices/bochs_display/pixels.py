"""From pixels as a guest wrote them to pixels of 32 bits, which is what screens of ours have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from devices.display import PixelLayout

_CHANNELS = {15: ((10, 5), (5, 5), (0, 5)), 16: ((11, 5), (5, 6), (0, 5))}
"""By bits per pixel: lowest bit and width of red, green and blue (VBE 3.0, direct colour fields)."""


def layout_of(bpp: int, *, big_endian: bool) -> PixelLayout:
    """The layout of the 32-bit pixels that are shown for a mode."""
    return PixelLayout.XRGB if big_endian and bpp == 32 else PixelLayout.BGRX


def to_bgrx(row: bytes, bpp: int, *, big_endian: bool) -> bytes:
    """The pixels of a row, of 15, 16 or 24 bits, as 32 bits each: blue, green, red, padding."""
    if bpp == 24:
        parts = np.frombuffer(row, np.uint8).reshape(-1, 3)
        return _joined(parts if big_endian else parts[:, ::-1])
    words = np.frombuffer(row, ">u2" if big_endian else "<u2")
    return _joined(np.stack([_channel(words, *place) for place in _CHANNELS[bpp]], axis=1))


def _channel(words: NDArray[np.uint16], low: int, width: int) -> NDArray[np.uint8]:
    """A channel at its full range: the highest bits are repeated below the lowest."""
    value = words >> low & (1 << width) - 1
    return (value << 8 - width | value >> 2 * width - 8).astype(np.uint8)


def _joined(red_green_blue: NDArray[np.uint8]) -> bytes:
    pixels = np.zeros((len(red_green_blue), 4), np.uint8)
    pixels[:, 2::-1] = red_green_blue
    return pixels.tobytes()
