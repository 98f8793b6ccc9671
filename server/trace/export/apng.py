"""Writes animated PNG, picture by picture (PNG specification, third edition, sections 5.3 and 11.3.6).

Pillow writes the same, with all pictures in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from struct import Struct
from typing import IO

from PIL import Image, ImageChops

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_U32 = Struct(">I")
_IHDR = Struct(">IIBBBBB")
_ACTL = Struct(">II")
_FCTL = Struct(">IIIIIHHBB")
_EIGHT_BITS, _RGB = 8, 2
_FOR_EVER = 0
_MAX_DELAY = 0xFFFF
_MS_PER_SECOND = 1000


class ApngWriter:
    """Writes to ``file``; each picture is as large as the first, and RGB."""

    def __init__(self, file: IO[bytes], size: tuple[int, int], count: int) -> None:
        """``size``: width and height of the pictures, of which there will be ``count``."""
        self._file = file
        self._number = 0
        self._previous: Image.Image | None = None
        file.write(_SIGNATURE)
        self._chunk(b"IHDR", _IHDR.pack(*size, _EIGHT_BITS, _RGB, 0, 0, 0))
        self._chunk(b"acTL", _ACTL.pack(count, _FOR_EVER))

    def add(self, picture: Image.Image, milliseconds: int) -> None:
        """The next picture, and how long it stays. Raises OSError."""
        first = self._previous is None
        box = (0, 0, *picture.size)
        if self._previous is not None:
            # Of one that looks like the one before, a pixel is needed all the same.
            box = ImageChops.difference(picture, self._previous).getbbox() or (0, 0, 1, 1)
        left, top, right, bottom = box
        delay = (milliseconds, _MS_PER_SECOND)
        if milliseconds > _MAX_DELAY:
            delay = (min(round(milliseconds / _MS_PER_SECOND), _MAX_DELAY), 1)
        place = (right - left, bottom - top, left, top)
        self._chunk(b"fcTL", _FCTL.pack(self._next(), *place, *delay, 0, 0))
        for data in _image_data(picture.crop(box)):
            if first:
                self._chunk(b"IDAT", data)
            else:
                self._chunk(b"fdAT", _U32.pack(self._next()) + data)
        self._previous = picture

    def close(self) -> None:
        """There are no more pictures; the file stays open."""
        self._chunk(b"IEND", b"")

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(_U32.pack(len(data)) + kind + data + _U32.pack(zlib.crc32(kind + data)))


def _image_data(picture: Image.Image) -> Iterator[bytes]:
    """What is in the IDAT chunks of a PNG of ``picture``."""
    whole = BytesIO()
    picture.save(whole, format="PNG")
    data = whole.getbuffer()
    at = len(_SIGNATURE)
    while at < len(data):
        (size,) = _U32.unpack_from(data, at)
        start = at + 2 * _U32.size
        if bytes(data[at + _U32.size : start]) == b"IDAT":
            yield bytes(data[start : start + size])
        at = start + size + _U32.size
