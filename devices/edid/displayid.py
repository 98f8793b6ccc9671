"""A DisplayID section in an EDID extension block, for modes too large for the base block (VESA DisplayID 1.3).

Besides the timing it carries the three data blocks that a section of a standalone display must have.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from struct import Struct

from devices.edid.timings import Timing

EXTENSION_TAG = 0x70
VERSION_1_3 = 0x13
SECTION_PAYLOAD = 121
"""Bytes of data blocks in a section that fills a 128-byte block: tag, header of 4 and two checksums less."""
STANDALONE_DISPLAY = 3
NO_FURTHER_SECTIONS = 0

PRODUCT_IDENTIFICATION = 0x00
DISPLAY_PARAMETERS = 0x01
TYPE_1_TIMING = 0x03
DISPLAY_INTERFACE = 0x0F
REVISION = 0

PREFERRED = 0x80
CLOCK_UNIT_HZ = 10_000
POSITIVE_SYNC = 0x8000
ASPECT_CODES = {(1, 1): 0, (5, 4): 1, (4, 3): 2, (5, 3): 3, (16, 9): 4, (8, 5): 5, (64, 27): 6, (256, 135): 7}
ASPECT_UNDEFINED = 8

MODEL_YEAR_FLAG = 0xFF
YEAR_BASE = 2000
GAMMA_2_2 = 120
NO_FEATURES = 0
DEPTH_8BPC = 0x77
"""Bits per component, less one, overall and native."""
MAX_ASPECT_BYTE = 0xFF
DISPLAYPORT_4_LINKS = 0xA4
DISPLAYPORT_1_1 = 0x11
RGB_8BPC = 0x02

_PRODUCT = Struct("<3sHIBBB")
"""Vendor, product code, serial number, week, year, length of a name."""
_PARAMETERS = Struct("<HHHHBBBB")
"""Width and height in 0.1 mm, then in pixels, features, gamma, aspect ratio, depth."""
_INTERFACE = Struct("<BBB7x")
"""Type and links, version, colour depths for RGB; no other colour encoding, no content protection."""
_TIMING = Struct("<HBHHHHHHHH")
"""Rest of the clock, options, then active, blank, front porch and sync width across and down, each less one."""


@dataclass(frozen=True, slots=True)
class Product:
    """Who made the screen, and which it is."""

    vendor: str
    code: int
    serial: int
    model_year: int


def displayid_block(timing: Timing, product: Product, size_mm: tuple[int, int]) -> bytes:
    """A 128-byte extension block for a screen of ``size_mm`` that prefers ``timing``."""
    data = (
        _data_block(PRODUCT_IDENTIFICATION, _product(product))
        + _data_block(DISPLAY_PARAMETERS, _parameters(timing, size_mm))
        + _data_block(DISPLAY_INTERFACE, _INTERFACE.pack(DISPLAYPORT_4_LINKS, DISPLAYPORT_1_1, RGB_8BPC))
        + _data_block(TYPE_1_TIMING, _type_1(timing))
    )
    header = bytes([VERSION_1_3, SECTION_PAYLOAD, STANDALONE_DISPLAY, NO_FURTHER_SECTIONS])
    section = header + data.ljust(SECTION_PAYLOAD, b"\0")
    block = bytes([EXTENSION_TAG]) + section + bytes([-sum(section) & 0xFF])
    return block + bytes([-sum(block) & 0xFF])


def _data_block(tag: int, payload: bytes) -> bytes:
    return bytes([tag, REVISION, len(payload)]) + payload


def _product(product: Product) -> bytes:
    year = product.model_year - YEAR_BASE
    return _PRODUCT.pack(
        product.vendor.encode("ascii"), product.code, product.serial, MODEL_YEAR_FLAG, year, 0
    )


def _parameters(timing: Timing, size_mm: tuple[int, int]) -> bytes:
    longer, shorter = max(timing.width, timing.height), min(timing.width, timing.height)
    aspect = min(round(100 * longer / shorter) - 100, MAX_ASPECT_BYTE)
    tenths = (side * 10 for side in size_mm)
    return _PARAMETERS.pack(*tenths, timing.width, timing.height, NO_FEATURES, GAMMA_2_2, aspect, DEPTH_8BPC)


def _type_1(timing: Timing) -> bytes:
    """A type I detailed timing (DisplayID 1.3, 4.4.1): 20 bytes."""
    clock = (timing.pixel_clock + CLOCK_UNIT_HZ // 2) // CLOCK_UNIT_HZ - 1
    divisor = gcd(timing.width, timing.height)
    aspect = ASPECT_CODES.get((timing.width // divisor, timing.height // divisor), ASPECT_UNDEFINED)
    return bytes([clock & 0xFF]) + _TIMING.pack(
        clock >> 8,
        PREFERRED | aspect,
        timing.width - 1,
        timing.h_blank - 1,
        timing.h_front - 1 | POSITIVE_SYNC,
        timing.h_sync - 1,
        timing.height - 1,
        timing.v_blank - 1,
        timing.v_front - 1,
        timing.v_sync - 1,
    )
