"""Waiting for a picture: what a running server has on its virtual screen, seen through its control socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from devices.display import Frame, PixelBuffer
from server.control_client import capture
from server.control_protocol import ControlError
from server.guest.errors import GuestError

_PIXEL = 4
_PAUSE_SECONDS = 0.1
_SMPTE_BARS = 7
_NARROWEST_BAR = 16


async def settled(
    control: Path, accept: Callable[[PixelBuffer], bool], within: float, scanout: int = 0
) -> Frame:
    """Wait until the screen shows what ``accept`` likes and has stopped changing; return it.

    Raises :class:`GuestError` where that does not happen within ``within`` seconds.
    """
    reason = "the guest shows nothing"
    last: PixelBuffer | None = None
    with trio.move_on_after(within):
        while True:
            try:
                frame = await capture(control, scanout)
            except ControlError as error:
                reason, last = str(error), None
            else:
                if frame.buffer == last and accept(frame.buffer):
                    return frame
                reason, last = "the guest shows something else, or keeps drawing", frame.buffer
            await trio.sleep(_PAUSE_SECONDS)
    raise GuestError(f"the picture did not come within {within:.0f} s: {reason}")


def is_drawn_on(buffer: PixelBuffer) -> bool:
    """Tell whether there is more on the screen than one colour."""
    first = buffer.pixels[:_PIXEL]
    return any(row_pixels(buffer, row) != first * buffer.width for row in range(buffer.height))


def has_colour_bars(buffer: PixelBuffer) -> bool:
    """Tell whether the upper part shows vertical bars in seven colours, as the SMPTE test pattern does.

    The last row has to be drawn on, too: guests copy pictures from the top, and may be interrupted for a while.
    """
    upper, lower, last = (
        row_pixels(buffer, row) for row in (buffer.height // 8, buffer.height // 4, buffer.height - 1)
    )
    return upper == lower and len(_wide_bars(upper)) >= _SMPTE_BARS and last != last[:_PIXEL] * buffer.width


def row_pixels(buffer: PixelBuffer, row: int) -> bytes:
    """Return the pixels of one row, without the padding behind them."""
    start = row * buffer.stride
    return buffer.pixels[start : start + buffer.width * _PIXEL]


def _wide_bars(row: bytes) -> set[bytes]:
    step = _NARROWEST_BAR * _PIXEL
    return {
        row[start : start + _PIXEL]
        for start in range(0, len(row) - step, step)
        if row[start : start + step] == row[start : start + _PIXEL] * _NARROWEST_BAR
    }
