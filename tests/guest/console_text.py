"""Reading the text of a screen: consoles draw the 8x16 font of VGA, which QEMU's VGA BIOS has inside."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from devices.display import PixelBuffer
from server.guest.qemu import Qemu
from server.guest.screen import row_pixels

VGA_BIOS = "vgabios-bochs-display.bin"
"""The option ROM that QEMU gives to a bochs-display of its own."""

CELL_WIDTH, CELL_HEIGHT = 8, 16
_CAPITAL_A = bytes.fromhex("0000 1038 6cc6 c6fe c6c6 c6c6 0000 0000")
"""A glyph of the font that is in no other place, a row to a byte."""
_PRINTABLE = range(0x20, 0x7F)

Font = Mapping[bytes, str]
"""Characters by their glyphs."""


def vga_font(qemu: Qemu) -> Font:
    """The printable characters of the font in the VGA BIOS that comes with ``qemu``."""
    command = [*qemu.argv, "-L", "help"]
    folders = subprocess.run(
        command, env=qemu.environment(), capture_output=True, text=True, check=True
    ).stdout.split("\n")
    (rom, *_) = [path for folder in folders if folder and (path := Path(folder) / VGA_BIOS).exists()]
    data = rom.read_bytes()
    start = data.index(_CAPITAL_A) - ord("A") * CELL_HEIGHT
    glyphs = {code: data[start + code * CELL_HEIGHT :][:CELL_HEIGHT] for code in _PRINTABLE}
    return {glyph: chr(code) for code, glyph in reversed(glyphs.items())}


def text_on(buffer: PixelBuffer, font: Font) -> str:
    """The lines of text on a screen with a black background; what is no character of the font is shown as �."""
    lines = []
    for top in range(0, buffer.height - CELL_HEIGHT + 1, CELL_HEIGHT):
        rows = [_bits(row_pixels(buffer, top + row)) for row in range(CELL_HEIGHT)]
        lines.append("".join(font.get(bytes(glyph), "\ufffd") for glyph in zip(*rows, strict=True)).rstrip())
    return "\n".join(lines).rstrip()


def _bits(pixels: bytes) -> list[int]:
    """Eight pixels to a number, the first is the highest bit; the fourth byte of a pixel is padding."""
    lit = [any(pixels[start : start + 3]) for start in range(0, len(pixels), 4)]
    return [
        sum(on << 7 - bit for bit, on in enumerate(lit[start : start + CELL_WIDTH]))
        for start in range(0, len(lit), CELL_WIDTH)
    ]
