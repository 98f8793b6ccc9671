from __future__ import annotations

from pathlib import Path

import pytest
import trio

from devices.display import Frame, PixelBuffer, PixelLayout
from server.control_protocol import ControlError
from server.guest import screen
from server.guest.errors import GuestError
from server.guest.screen import has_colour_bars, is_drawn_on, row_pixels, settled

WIDTH, HEIGHT, PADDING = 224, 16, 8
BLACK = b"\0\0\0\0"
BARS = b"".join(bytes([192 * (bar & 1), 96 * (bar & 2), 48 * (bar & 4), 0]) * 32 for bar in range(7))


def picture(row: bytes, last: bytes | None = None) -> PixelBuffer:
    pixels = b"".join(one + b"\xee" * PADDING for one in [row] * (HEIGHT - 1) + [last or row])
    return PixelBuffer(WIDTH, HEIGHT, WIDTH * 4 + PADDING, PixelLayout.BGRX, pixels)


BLANK = picture(BLACK * WIDTH)
TEXT = picture((BLACK + b"\xff" * 4) * (WIDTH // 2))
PATTERN = picture(BARS)


def test_padding_is_not_part_of_the_picture() -> None:
    assert row_pixels(PATTERN, 3) == BARS
    assert not is_drawn_on(BLANK)


def test_text_and_patterns_are_told_apart() -> None:
    assert is_drawn_on(TEXT)
    assert is_drawn_on(PATTERN)
    assert has_colour_bars(PATTERN)
    assert not has_colour_bars(TEXT)
    assert not has_colour_bars(BLANK)


def test_a_pattern_of_which_the_guest_has_not_drawn_all_is_not_taken_for_one() -> None:
    assert not has_colour_bars(picture(BARS, last=BLACK * WIDTH))


async def test_a_picture_counts_once_it_stopped_changing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    shown: list[PixelBuffer | None] = [None, BLANK, TEXT, PATTERN, TEXT, TEXT, PATTERN]

    async def capture(control: Path, scanout: int) -> Frame:
        buffer = shown.pop(0)
        if buffer is None:
            raise ControlError("the guest shows nothing on scanout 0")
        return Frame(scanout, buffer)

    monkeypatch.setattr(screen, "capture", capture)
    assert (await settled(Path("control"), is_drawn_on, within=10)).buffer == TEXT
    assert shown == [PATTERN]


async def test_a_picture_that_never_comes_is_an_error(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def capture(control: Path, scanout: int) -> Frame:
        raise ControlError("the guest shows nothing on scanout 0")

    monkeypatch.setattr(screen, "capture", capture)
    with pytest.raises(GuestError, match="within 5 s: the guest shows nothing on scanout 0"):
        await settled(Path("control"), is_drawn_on, within=5)
