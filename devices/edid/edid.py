"""EDID of a virtual screen, for any mode (VESA E-EDID release A revision 2: EDID 1.4).

The preferred refresh rate is 75 Hz, as it is of the screens that QEMU makes: kernels that pace page flips to the
refresh rate then flip as often as there, and a guest that is moved from one to the other keeps its mode.

A mode that does not fit the 18-byte descriptor of the base block (active above 4095 pixels, pixel clock above
655.35 MHz, vertical front porch above 63 lines) goes into a DisplayID extension, and the base block prefers the
nearest that fits: the same mode at 60 Hz, or 1024x768.
"""

from __future__ import annotations

from struct import Struct

from devices.edid.displayid import Product, displayid_block
from devices.edid.timings import Timing, reduced_blanking

BLOCK_SIZE = 128
REFRESH_HZ = 75
FALLBACK_REFRESH_HZ = 60
FALLBACK_MODE = (1024, 768)

VENDOR = "VGP"
"""Manufacturer id; assigned to nobody in the list that hwdata keeps of them (pnp.ids)."""
PRODUCT_CODE = 0x1050
PRODUCT_NAME = "Virtual GPU"
MODEL_YEAR = 2025

HEADER = bytes.fromhex("00ffffffffffff00")
MODEL_YEAR_FLAG = 0xFF
"""In place of the week of manufacture: the year is that of the model."""
YEAR_BASE = 1990
VERSION = bytes([1, 4])
DIGITAL_8BPC_DISPLAYPORT = 0xA5
GAMMA_2_2 = 120
SRGB_AND_NATIVE_PREFERRED = 0x06
SRGB_CHROMATICITY = bytes.fromhex("ee91a3544c99260f5054")
"""Chromaticity of the sRGB primaries and of D65, as 10-bit fractions (EDID 1.4, 3.7)."""

DESCRIPTOR_SIZE = 18
DESCRIPTOR_NAME = 0xFC
DESCRIPTOR_SERIAL = 0xFF
DESCRIPTOR_DUMMY = 0x10
TEXT_LENGTH = 13

MAX_ACTIVE = 0xFFF
MAX_CLOCK_10KHZ = 0xFFFF
MAX_V_FRONT = 0x3F
CLOCK_UNIT_HZ = 10_000
DIGITAL_SYNC_H_POSITIVE = 0x1A

MILLIMETRES_PER_INCH = 25.4
DOTS_PER_INCH = 96
MAX_MILLIMETRES = 2550
"""The base block counts whole centimetres in one byte."""

ESTABLISHED = {(640, 480): (0, 0x20), (800, 600): (0, 0x01), (1024, 768): (1, 0x08)}
"""Modes at 60 Hz that have a bit of their own: byte and mask in the established timings."""

STANDARD = (
    (1920, 1200),
    (1920, 1080),
    (1680, 1050),
    (1600, 1200),
    (1440, 900),
    (1280, 1024),
    (1280, 960),
    (1280, 720),
)
STANDARD_UNUSED = b"\x01\x01"
ASPECT_CODES = {(16, 10): 0, (4, 3): 1, (5, 4): 2, (16, 9): 3}

_IDENTITY = Struct("<HIBB")
"""Product code, serial number, week, year."""


def edid(width: int, height: int, screen: int) -> bytes:
    """The EDID of screen number ``screen``, which prefers ``width`` by ``height`` pixels: 128 or 256 bytes."""
    preferred = reduced_blanking(width, height, REFRESH_HZ)
    size = _size_mm(width, height)
    product = Product(VENDOR, PRODUCT_CODE, screen + 1, MODEL_YEAR)
    extensions = b"" if fits_descriptor(preferred) else displayid_block(preferred, product, size)
    base = bytearray(
        HEADER
        + _identification(product)
        + VERSION
        + bytes(
            [
                DIGITAL_8BPC_DISPLAYPORT,
                *(round(side / 10) for side in size),
                GAMMA_2_2,
                SRGB_AND_NATIVE_PREFERRED,
            ]
        )
        + SRGB_CHROMATICITY
        + _established(width, height)
        + _standard(width, height)
        + _detailed(_base_timing(preferred), size)
        + _text(DESCRIPTOR_NAME, PRODUCT_NAME)
        + _text(DESCRIPTOR_SERIAL, f"screen {screen}")
        + _descriptor(DESCRIPTOR_DUMMY, b"")
    )
    base.append(len(extensions) // BLOCK_SIZE)
    base.append(-sum(base) & 0xFF)
    return bytes(base) + extensions


def fits_descriptor(timing: Timing) -> bool:
    """Whether an 18-byte detailed timing descriptor can hold ``timing``."""
    return (
        timing.width <= MAX_ACTIVE
        and timing.height <= MAX_ACTIVE
        and timing.v_front <= MAX_V_FRONT
        and _clock(timing) <= MAX_CLOCK_10KHZ
    )


def _base_timing(preferred: Timing) -> Timing:
    if fits_descriptor(preferred):
        return preferred
    slower = reduced_blanking(preferred.width, preferred.height, FALLBACK_REFRESH_HZ)
    return slower if fits_descriptor(slower) else reduced_blanking(*FALLBACK_MODE, REFRESH_HZ)


def _clock(timing: Timing) -> int:
    return (timing.pixel_clock + CLOCK_UNIT_HZ // 2) // CLOCK_UNIT_HZ


def _identification(product: Product) -> bytes:
    """Ten bytes; the vendor's three letters take five bits each."""
    first, second, third = (ord(letter) - ord("A") + 1 for letter in product.vendor)
    vendor = (first << 10 | second << 5 | third).to_bytes(2, "big")
    year = product.model_year - YEAR_BASE
    return vendor + _IDENTITY.pack(product.code, product.serial, MODEL_YEAR_FLAG, year)


def _size_mm(width: int, height: int) -> tuple[int, int]:
    """Physical size in millimetres at 96 dpi; both zero, which is unknown, where one is too large to be said."""
    size = tuple(round(pixels * MILLIMETRES_PER_INCH / DOTS_PER_INCH) for pixels in (width, height))
    return (size[0], size[1]) if max(size) <= MAX_MILLIMETRES else (0, 0)


def _established(width: int, height: int) -> bytes:
    bits = bytearray(3)
    for (mode_width, mode_height), (byte, mask) in ESTABLISHED.items():
        if mode_width <= width and mode_height <= height:
            bits[byte] |= mask
    return bytes(bits)


def _standard(width: int, height: int) -> bytes:
    """Eight standard timings: those that are smaller than the screen."""
    codes = [
        _standard_code(*mode)
        for mode in STANDARD
        if mode != (width, height) and mode[0] <= width and mode[1] <= height
    ]
    return b"".join(codes + [STANDARD_UNUSED] * (len(STANDARD) - len(codes)))


def _standard_code(width: int, height: int) -> bytes:
    """Width in units of 8 pixels from 248, aspect ratio, and 60 Hz (which is 0)."""
    aspect = next(code for (x, y), code in ASPECT_CODES.items() if width * y == height * x)
    return bytes([width // 8 - 31, aspect << 6])


def _detailed(timing: Timing, size_mm: tuple[int, int]) -> bytes:
    """A detailed timing descriptor (EDID 1.4, 3.10.2); low bytes first, high bits gathered behind them."""
    h_active, h_blank, v_active, v_blank = timing.width, timing.h_blank, timing.height, timing.v_blank
    h_front, h_sync, v_front, v_sync = timing.h_front, timing.h_sync, timing.v_front, timing.v_sync
    h_size, v_size = size_mm
    return _clock(timing).to_bytes(2, "little") + bytes(
        [
            h_active & 0xFF,
            h_blank & 0xFF,
            h_active >> 8 << 4 | h_blank >> 8,
            v_active & 0xFF,
            v_blank & 0xFF,
            v_active >> 8 << 4 | v_blank >> 8,
            h_front & 0xFF,
            h_sync & 0xFF,
            (v_front & 0xF) << 4 | v_sync & 0xF,
            h_front >> 8 << 6 | h_sync >> 8 << 4 | v_front >> 4 << 2 | v_sync >> 4,
            h_size & 0xFF,
            v_size & 0xFF,
            h_size >> 8 << 4 | v_size >> 8,
            0,
            0,
            DIGITAL_SYNC_H_POSITIVE,
        ]
    )


def _descriptor(tag: int, data: bytes) -> bytes:
    return (bytes([0, 0, 0, tag, 0]) + data).ljust(DESCRIPTOR_SIZE, b"\0")


def _text(tag: int, text: str) -> bytes:
    """A text descriptor; shorter texts end with a line feed and are padded with spaces."""
    return _descriptor(tag, (text.encode("ascii") + b"\n").ljust(TEXT_LENGTH)[:TEXT_LENGTH])
