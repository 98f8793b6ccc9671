"""Scanouts: the screens of the device, and the part of a resource that each shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from devices.contract import GuestMemoryError
from devices.display import CursorImage, NothingOnScanout, PixelBuffer, PixelLayout, ScanoutInfo
from devices.virtio_gpu.formats import BYTES_PER_PIXEL, OPAQUE
from devices.virtio_gpu.protocol import CURSOR_SIDE
from devices.virtio_gpu.resources import Resource, Resource2D


class Rect(NamedTuple):
    """A rectangle in pixels, from the top left corner."""

    x: int
    y: int
    width: int
    height: int

    def inside(self, width: int, height: int) -> bool:
        """Whether an area of ``width`` by ``height`` pixels covers this rectangle."""
        return self.x + self.width <= width and self.y + self.height <= height


@dataclass(frozen=True, slots=True)
class Framebuffer:
    """Where in a resource the pixels of a scanout are: ``rect`` of it, the first at byte ``offset``."""

    resource: Resource
    rect: Rect
    offset: int
    stride: int
    layout: PixelLayout

    async def grab(self) -> PixelBuffer:
        """A copy of the pixels. Raises :class:`NothingOnScanout` where the guest's memory is out of reach."""
        row = self.rect.width * BYTES_PER_PIXEL
        pixels = bytearray(row * self.rect.height)
        target = memoryview(pixels)
        if isinstance(self.resource, Resource2D):
            source = self.resource.pixels
            for index in range(self.rect.height):
                start = self.offset + index * self.stride
                target[index * row : (index + 1) * row] = source[start : start + row]
        else:
            await self._grab_backing(target, row)
        layout = OPAQUE[self.layout]
        return PixelBuffer(self.rect.width, self.rect.height, row, layout, bytes(pixels))

    def observe(self) -> None:
        """Where the session is recorded: these pixels are complete, as the guest says."""
        backing = self.resource.backing
        if backing is not None and not isinstance(self.resource, Resource2D):
            backing.observe(
                self.offset, self.stride * (self.rect.height - 1) + self.rect.width * BYTES_PER_PIXEL
            )

    async def _grab_backing(self, target: memoryview, row: int) -> None:
        backing = self.resource.backing
        if backing is None:
            raise NothingOnScanout("the guest has taken back the memory that this scanout shows")
        try:
            await backing.copy_rows(self.offset, self.stride, target, row, row, self.rect.height)
        except GuestMemoryError as error:
            raise NothingOnScanout(f"the memory that this scanout shows cannot be read: {error}") from error


class Cursor:
    """The cursor of one scanout. A position is that of the hot spot."""

    def __init__(self) -> None:
        self.x = 0
        self.y = 0
        self.hot_x = 0
        self.hot_y = 0
        self.image: PixelBuffer | None = None

    def on_screen(self, width: int, height: int) -> CursorImage | None:
        """The cursor on a screen of this size; None where it is hidden or no part of it is on the screen."""
        x, y = self.x - self.hot_x, self.y - self.hot_y
        if self.image is None or not (-CURSOR_SIDE < x < width and -CURSOR_SIDE < y < height):
            return None
        return CursorImage(x, y, self.image)


class Scanout:
    """One screen. ``width`` and ``height`` are what it prefers; what it shows is in ``framebuffer``."""

    def __init__(self, index: int, width: int, height: int) -> None:
        self.index = index
        self.width = width
        self.height = height
        self.connected = True
        self.framebuffer: Framebuffer | None = None
        self.still: PixelBuffer | None = None
        """The last picture of a client that is gone."""
        self.cursor = Cursor()
        self.flips = 0
        self.flushes = 0

    @property
    def info(self) -> ScanoutInfo:
        """The screen as others see it."""
        rect = self.framebuffer.rect if self.framebuffer else Rect(0, 0, 0, 0)
        return ScanoutInfo(
            self.index,
            self.connected,
            self.width,
            self.height,
            rect.width,
            rect.height,
            rect.x,
            rect.y,
            self.flips,
            self.flushes,
        )

    def show(self, framebuffer: Framebuffer | None) -> None:
        """Show ``framebuffer`` from now on, or nothing."""
        if self.framebuffer is not None:
            self.framebuffer.resource.scanouts.discard(self.index)
        if framebuffer is not None:
            framebuffer.resource.scanouts.add(self.index)
        self.framebuffer = framebuffer
        self.still = None

    def reset(self) -> None:
        """Blank, without a cursor; the mode and the connection stay."""
        self.show(None)
        self.cursor = Cursor()
