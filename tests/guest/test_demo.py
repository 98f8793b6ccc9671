"""``vgpud demo`` from end to end: our server, a real QEMU, a stock guest, and the pictures that come out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from server.guest.child import started
from tests.guest.support import GuestParts

pytestmark = pytest.mark.guest

SMPTE_TOP = [
    (192, 192, 192), (192, 192, 0), (0, 192, 192), (0, 192, 0), (192, 0, 192), (192, 0, 0), (0, 0, 192),
]  # fmt: skip
"""The upper bars as libdrm's tests/util/pattern.c draws them."""

SMPTE_MIDDLE = [
    (0, 0, 192), (19, 19, 19), (192, 0, 192), (19, 19, 19), (0, 192, 192), (19, 19, 19), (192, 192, 192),
]  # fmt: skip


def bars(picture: Image.Image, height: float) -> list[object]:
    """The colours in the middle of seven bars side by side, at ``height`` of the picture."""
    return [
        picture.getpixel((picture.width * (2 * bar + 1) // 14, int(picture.height * height)))
        for bar in range(len(SMPTE_TOP))
    ]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_demo_saves_the_console_and_the_test_pattern(parts: GuestParts, tmp_path: Path) -> None:
    picture = tmp_path / "pictures/demo.png"
    command = [sys.executable, "-m", "server", "demo", "--output", str(picture)]
    async with started("the demo", command, {**os.environ, "TMPDIR": str(tmp_path)}) as demo:
        assert await demo.wait() == 0, demo.log.lines
        await demo.log.wait_for("all in all")
    assert names(tmp_path) == ["pictures"]

    said = "\n".join(demo.log.lines)
    assert f"Linux {parts.kernel.release}" in said
    for measured in (str(picture), "DRM device ", "commands served ", "pages pinned "):
        assert measured in said

    with Image.open(picture) as pattern:
        assert bars(pattern, 1 / 3) == SMPTE_TOP
        assert bars(pattern, 0.7) == SMPTE_MIDDLE
    with Image.open(tmp_path / "pictures/demo-console.png") as console:
        colours = console.getcolors()
        assert colours is not None
        ((background, black), (text, grey)) = sorted(colours, reverse=True)
        assert (black, grey) == ((0, 0, 0), (170, 170, 170))
        assert background > text > console.width
