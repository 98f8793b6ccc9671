"""Where exported pictures go: a folder of PNG files, or one animated picture."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Final, cast

from PIL import Image

from devices.display import Frame
from protocol.trace import TraceError
from server.screenshot import compose
from server.trace.export.apng import ApngWriter
from server.trace.export.private_file import open_private

MAX_GIF: Final = 256 << 20
"""Pixels of a GIF, all pictures together: Pillow has them in memory at once, a byte each."""
MAX_KEPT: Final = 4 << 30
"""Bytes of the pictures of an animation, in a temporary file, until it is known how large the largest is."""
LAST_SECONDS: Final = 1.0
"""How long the last picture of an animation stays."""

_PNG, _GIF, _WEBP = "PNG", "GIF", "WEBP"
_FORMATS: Final = {".png": _PNG, ".apng": _PNG, ".gif": _GIF, ".webp": _WEBP}
_NAME: Final = re.compile(r"\d{4,}-\d+\.\d{6}s\.png")
_FAST: Final = 1
"""How well Pillow compresses what is soon read again."""


class Folder:
    """``0001-0.123456s.png`` and so on: the number, and the time since the session began."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and TraceError where the pictures would be mixed with those of an earlier export."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(_NAME.fullmatch(one.name) for one in path.iterdir()):
            raise TraceError(
                f"{path}: has pictures of an earlier export: give another folder, or remove them"
            )
        self._path = path
        self._count = 0

    def put(self, seconds: float, frame: Frame) -> None:
        """Write a file. Raises OSError."""
        self._count += 1
        with open_private(self._path / f"{self._count:04}-{seconds:.6f}s.png") as file:
            compose(frame).save(file, format=_PNG)

    def finish(self) -> int:
        """How many files there are."""
        return self._count

    def close(self) -> None:
        """Nothing is left open."""


class Animation:
    """One file, which shows each picture as long as the guest did; the format is that of its name.

    The pictures wait in a temporary file, compressed: memory does not grow with how many there are.
    """

    def __init__(self, path: Path) -> None:
        """Raises TraceError where the name says no format."""
        if path.suffix.lower() not in _FORMATS:
            raise TraceError(f"{path}: is no name of an animated picture: name it .png, .gif or .webp")
        self._path = path
        self._format = _FORMATS[path.suffix.lower()]
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        self._sizes: list[int] = []
        self._times: list[float] = []
        self._canvas = (0, 0)

    def put(self, seconds: float, frame: Frame) -> None:
        """Keep a picture. Raises OSError, and TraceError where there are too many."""
        picture = compose(frame)
        self._canvas = max(self._canvas[0], picture.width), max(self._canvas[1], picture.height)
        pixels = self._canvas[0] * self._canvas[1] * (len(self._times) + 1)
        if self._format == _GIF and pixels > MAX_GIF and self._times:
            raise TraceError(
                f"{self._path}: more than {len(self._times)} pictures, too many for a .gif: name it .png or .webp"
            )
        start = self._kept.tell()
        picture.save(self._kept, format=_PNG, compress_level=_FAST)
        self._kept.seek(0, 2)
        self._sizes.append(self._kept.tell() - start)
        self._times.append(seconds)
        if self._kept.tell() > MAX_KEPT:
            raise TraceError(
                f"more than {MAX_KEPT >> 30} GiB of pictures: export --frames, and make a film of them"
            )

    def finish(self) -> int:
        """Write the file; returns how many pictures are in it. Raises OSError."""
        if not self._times:
            return 0
        with open_private(self._path) as output:
            if self._format == _PNG:
                self._write_png(output)
            else:
                with tempfile.TemporaryFile() as film:
                    self._write_png(cast("IO[bytes]", film))
                    self._convert(cast("IO[bytes]", film), output)
        return len(self._times)

    def close(self) -> None:
        """The temporary file goes."""
        self._kept.close()

    def _write_png(self, output: IO[bytes]) -> None:
        writer = ApngWriter(output, self._canvas, len(self._times))
        for picture, duration in zip(self._pictures(), self._durations(), strict=True):
            writer.add(picture, duration)
        writer.close()

    def _convert(self, film: IO[bytes], output: IO[bytes]) -> None:
        """From PNG, which Pillow reads picture by picture."""
        film.seek(0)
        with Image.open(film) as pictures:
            pictures.save(output, format=self._format, save_all=True, duration=self._durations(), loop=0)

    def _durations(self) -> list[int]:
        """Of each picture, in ms."""
        ends = [*self._times, self._times[-1] + LAST_SECONDS]
        return [max(round(1000 * (end - start)), 0) for start, end in pairwise(ends)]

    def _pictures(self) -> Iterator[Image.Image]:
        """As they were put, on a canvas that has room for the largest."""
        self._kept.seek(0)
        for size in self._sizes:
            with Image.open(BytesIO(self._kept.read(size))) as picture:
                yield _on_canvas(picture.convert("RGB"), self._canvas)


def _on_canvas(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of another mode, at the top left."""
    if picture.size == size:
        return picture
    canvas = Image.new("RGB", size)
    canvas.paste(picture)
    return canvas
