"""What a device with screens offers to whoever shows them: scanouts, their pixels, and display changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from devices.work import Work


class PixelLayout(Enum):
    """Byte order of a 32-bit pixel in memory, first byte first; X is padding."""

    BGRA = "BGRA"
    BGRX = "BGRX"
    ARGB = "ARGB"
    XRGB = "XRGB"
    RGBA = "RGBA"
    XBGR = "XBGR"
    ABGR = "ABGR"
    RGBX = "RGBX"


@dataclass(frozen=True, slots=True)
class PixelBuffer:
    """``height`` rows of ``width`` pixels, each row ``stride`` bytes after the one before."""

    width: int
    height: int
    stride: int
    layout: PixelLayout
    pixels: bytes


@dataclass(frozen=True, slots=True)
class CursorImage:
    """A cursor with alpha whose top left corner is at ``x``, ``y`` on the scanout (may be negative)."""

    x: int
    y: int
    image: PixelBuffer


@dataclass(frozen=True, slots=True)
class Frame:
    """What is on a scanout now."""

    scanout: int
    buffer: PixelBuffer
    cursor: CursorImage | None = None


@dataclass(frozen=True, slots=True)
class ScanoutInfo:
    """One screen: the mode that the device prefers, and what the guest shows there (0 by 0 if nothing).

    ``flips`` and ``flushes`` count since the device was made: pictures that the guest put there, and changes to one.
    """

    index: int
    connected: bool
    preferred_width: int
    preferred_height: int
    width: int
    height: int
    x: int = 0
    y: int = 0
    flips: int = 0
    flushes: int = 0


class NothingOnScanout(LookupError):  # noqa: N818 - a state of the screen, not a fault
    """The guest shows nothing on this scanout."""


class Display(Protocol):
    """A device that has screens."""

    @property
    def scanouts(self) -> Sequence[ScanoutInfo]:
        """All screens of the device, by index."""

    def capture(self, scanout: int) -> Work:
        """Deferred work that returns a :class:`Frame`.

        Raises :class:`NothingOnScanout` where the guest shows nothing, IndexError where there is no such scanout.
        """

    def set_mode(self, scanout: int, width: int, height: int, *, connected: bool = True) -> None:  # noqa: ARG002 - optional
        """Change what the screen prefers, and tell the guest (a display change event).

        Optional: a device that does not override this has screens that cannot be changed. Raises IndexError where
        there is no such scanout, ValueError for a mode the device cannot have; the text is one line for the user.
        """
        raise ValueError("the screens of this device cannot be changed")
