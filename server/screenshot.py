"""From a frame, as the device keeps it, to a picture that people can open."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from devices.display import Frame, PixelBuffer


def to_image(buffer: PixelBuffer, mode: str) -> Image.Image:
    """The pixels as an image of ``mode``: "RGB" (what a screen shows) or "RGBA" (a cursor)."""
    size = (buffer.width, buffer.height)
    raw = buffer.layout.value  # Pillow's raw modes have the names of our layouts
    if mode == "RGB" or "X" in raw:
        opaque = Image.frombytes("RGB", size, buffer.pixels, "raw", raw.replace("A", "X"), buffer.stride, 1)
        return opaque.convert(mode)
    return Image.frombytes(mode, size, buffer.pixels, "raw", raw, buffer.stride, 1)


def compose(frame: Frame) -> Image.Image:
    """The scanout as a person would see it: alpha of the screen ignored, the cursor blended over it."""
    image = to_image(frame.buffer, "RGB")
    if frame.cursor is not None:
        cursor = to_image(frame.cursor.image, "RGBA")
        image.paste(cursor, (frame.cursor.x, frame.cursor.y), cursor)
    return image


def save_png(frame: Frame, output: Path) -> None:
    """Write ``frame`` to ``output`` as PNG. Raises OSError."""
    compose(frame).save(output, format="PNG")
