"""Animated pictures: what is in them, as Pillow reads them, and that memory does not grow with how many there are."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from devices.display import Frame, PixelBuffer, PixelLayout
from protocol.trace import TraceError
from server.trace.export import pictures
from server.trace.export.pictures import Animation

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

LAST = 1000
"""How long the last picture stays, in ms."""


def frame(picture: Image.Image) -> Frame:
    data = picture.convert("RGBA").tobytes("raw", "BGRA")
    buffer = PixelBuffer(picture.width, picture.height, 4 * picture.width, PixelLayout.BGRX, data)
    return Frame(0, buffer)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1]))


def written(path: Path, shown: list[tuple[float, Image.Image]]) -> None:
    with closing(Animation(path)) as film:
        for seconds, picture in shown:
            film.put(seconds, frame(picture))
        assert film.finish() == len(shown)


def read(path: Path) -> list[tuple[float, Image.Image]]:
    """How long each picture stays, in ms, and what it is."""
    with Image.open(path) as film:
        # WebP knows how long a picture stays only when it has read it.
        read = [(one.convert("RGB"), one.info["duration"]) for one in ImageSequence.Iterator(film)]
        return [(duration, picture) for picture, duration in read]


def test_each_picture_is_there_exactly_and_stays_until_the_next(tmp_path: Path) -> None:
    first = noise((60, 40))
    second = first.copy()
    second.paste(noise((7, 5)), (50, 33))
    third = noise((60, 40))
    written(tmp_path / "film.png", [(0.0, first), (0.25, second), (100.25, third)])
    film = read(tmp_path / "film.png")
    assert [duration for duration, _ in film] == [250, 100_000, LAST]
    assert [one.tobytes() for _, one in film] == [one.tobytes() for one in (first, second, third)]


def test_a_screen_that_changes_its_size_is_at_the_top_left(tmp_path: Path) -> None:
    small, wide, high = noise((20, 10)), noise((40, 8)), noise((5, 30))
    written(tmp_path / "film.png", [(0.0, small), (1.0, wide), (2.0, high)])
    film = [picture for _, picture in read(tmp_path / "film.png")]
    for seen, shown in zip(film, (small, wide, high), strict=True):
        assert seen.size == (40, 30)
        assert seen.crop((0, 0, *shown.size)).tobytes() == shown.tobytes()
        assert seen.getpixel((39, 29)) == (0, 0, 0)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".PNG"])
def test_pictures_that_look_alike_are_all_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    grey = Image.new("RGB", (16, 16), (128, 128, 128))
    written(path, [(0.0, grey), (1.0, grey), (3.0, Image.new("RGB", (16, 16)))])
    assert sum(duration for duration, _ in read(path)) == 3000 + LAST


def test_one_picture_is_a_picture(tmp_path: Path) -> None:
    only = noise((9, 9))
    written(tmp_path / "film.png", [(4.0, only)])
    with Image.open(tmp_path / "film.png") as picture:
        assert picture.convert("RGB").tobytes() == only.tobytes()


def test_nothing_is_written_where_nothing_was_shown(tmp_path: Path) -> None:
    written(tmp_path / "film.png", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, suffix: str) -> None:
    size = (320, 240)

    def peak(count: int) -> int:
        shown = [(float(number), Image.new("RGB", size, (number, 0, 0))) for number in range(2)]
        tracemalloc.start()
        try:
            with closing(Animation(tmp_path / f"{count}{suffix}")) as film:
                for number in range(count):
                    film.put(float(number), frame(shown[number % 2][1]))
                film.finish()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100) < peak(10) + 3 * size[0] * size[1]


def test_too_many_pictures_for_a_gif_are_refused_and_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_GIF", 1000)
    with closing(Animation(tmp_path / "film.gif")) as film:
        for number in range(10):
            film.put(float(number), frame(Image.new("RGB", (10, 10))))
        with pytest.raises(TraceError, match=r"more than 10 pictures, .* name it \.png or \.webp"):
            film.put(10.0, frame(Image.new("RGB", (10, 10))))


def test_what_is_kept_of_an_animation_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_KEPT", 10_000)
    with closing(Animation(tmp_path / "film.png")) as film:
        film.put(0.0, frame(noise((40, 40))))
        film.put(1.0, frame(noise((40, 40))))
        with pytest.raises(TraceError, match="--frames"):
            film.put(2.0, frame(noise((40, 40))))
