"""From pixels in memory to what a person sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from devices.display import CursorImage, Frame, PixelBuffer, PixelLayout
from server.screenshot import compose, save_png

RED, GREEN, BLUE, ALPHA = 0x11, 0x22, 0x33, 0x44


def buffer(
    width: int, height: int, pixel: bytes, layout: PixelLayout = PixelLayout.RGBA, padding: int = 0
) -> PixelBuffer:
    stride = width * 4 + padding
    return PixelBuffer(width, height, stride, layout, (pixel * width + bytes(padding)) * height)


def colours(image: Image.Image) -> list[tuple[int, int, int]]:
    data = iter(image.tobytes())
    return list(zip(data, data, data, strict=True))


@pytest.mark.parametrize(
    ("layout", "pixel"),
    [
        (PixelLayout.BGRA, (BLUE, GREEN, RED, ALPHA)),
        (PixelLayout.BGRX, (BLUE, GREEN, RED, 0)),
        (PixelLayout.ARGB, (ALPHA, RED, GREEN, BLUE)),
        (PixelLayout.XRGB, (0, RED, GREEN, BLUE)),
        (PixelLayout.RGBA, (RED, GREEN, BLUE, ALPHA)),
        (PixelLayout.RGBX, (RED, GREEN, BLUE, 0)),
        (PixelLayout.ABGR, (ALPHA, BLUE, GREEN, RED)),
        (PixelLayout.XBGR, (0, BLUE, GREEN, RED)),
    ],
)
def test_every_layout_shows_the_same_colour_whatever_its_alpha(
    layout: PixelLayout, pixel: tuple[int, ...]
) -> None:
    image = compose(Frame(0, buffer(3, 2, bytes(pixel), layout, padding=8)))
    assert image.size == (3, 2)
    assert set(colours(image)) == {(RED, GREEN, BLUE)}


def test_a_cursor_is_blended_by_its_alpha_and_cut_at_the_edges() -> None:
    cursor = PixelBuffer(2, 1, 8, PixelLayout.BGRA, bytes((0, 0, 255, 255, 0, 0, 255, 0)))
    screen = buffer(3, 1, bytes((0, 0, 100, 0)))
    shown = [colours(compose(Frame(0, screen, CursorImage(x, 0, cursor)))) for x in (0, 2, -1)]
    red, blue = (255, 0, 0), (0, 0, 100)
    assert shown[0] == [red, blue, blue]
    assert shown[1] == [blue, blue, red]
    assert shown[2] == [blue, blue, blue]


def test_a_cursor_without_alpha_is_opaque() -> None:
    cursor = buffer(1, 1, bytes((1, 2, 3, 0)), PixelLayout.RGBX)
    image = compose(Frame(0, buffer(2, 1, bytes(4)), CursorImage(1, 0, cursor)))
    assert colours(image) == [(0, 0, 0), (1, 2, 3)]


def test_a_screenshot_is_a_png_that_others_read(tmp_path: Path) -> None:
    save_png(Frame(0, buffer(5, 4, bytes((9, 8, 7, 0)))), tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(tmp_path / "screen.png") as image:
        assert image.size == (5, 4)
        assert image.getpixel((4, 3)) == (9, 8, 7)
