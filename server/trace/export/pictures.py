"""Where exported pictures go: a folder of PNG files, or one animated picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from devices.display import Frame
from protocol.trace import TraceError
from server.screenshot import compose, save_png

MAX_ANIMATED = 500
"""Pictures of an animation, which are in memory together."""
LAST_SECONDS = 1.0
"""How long the last picture of an animation stays."""


class Folder:
    """``0001-0.123456s.png`` and so on: the number, and the time since the session began."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._count = 0

    def put(self, seconds: float, frame: Frame) -> None:
        """Write a file. Raises OSError."""
        self._count += 1
        save_png(frame, self._path / f"{self._count:04}-{seconds:.6f}s.png")

    def close(self) -> int:
        """How many files there are."""
        return self._count


class Animation:
    """One file, which shows each picture as long as the guest did; the format is that of its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pictures: list[Image.Image] = []
        self._times: list[float] = []

    def put(self, seconds: float, frame: Frame) -> None:
        """Keep a picture. Raises TraceError where there are too many."""
        if len(self._pictures) >= MAX_ANIMATED:
            raise TraceError(f"more than {MAX_ANIMATED} pictures: export --frames, and make a film of them")
        self._pictures.append(compose(frame))
        self._times.append(seconds)

    def close(self) -> int:
        """Write the file; returns how many pictures are in it. Raises OSError, TraceError."""
        if not self._pictures:
            return 0
        size = max(one.width for one in self._pictures), max(one.height for one in self._pictures)
        first, *others = [_on_canvas(one, size) for one in self._pictures]
        ends = [*self._times[1:], self._times[-1] + LAST_SECONDS]
        durations = [round(1000 * (end - start)) for start, end in zip(self._times, ends, strict=True)]
        try:
            first.save(self._path, save_all=True, append_images=others, duration=durations, loop=0)
        except ValueError as error:
            raise TraceError(f"{self._path}: {error}; name it .png, .gif or .webp") from error
        return len(self._pictures)


def _on_canvas(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of another mode, at the top left."""
    if picture.size == size:
        return picture
    canvas = Image.new("RGB", size)
    canvas.paste(picture)
    return canvas
