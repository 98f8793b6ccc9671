"""What is on the screen: which bytes of the framebuffer a mode shows, and as which colours."""

import struct

import pytest

from devices.display import NothingOnScanout, PixelLayout
from devices.work import Pause
from tests.devices.bochs_display.driver import (
    BIG,
    BPP,
    ENABLE,
    ENABLED,
    MIB,
    QEXT_ENDIANNESS,
    VIRT_WIDTH,
    VRAM,
    X_OFFSET,
    XRES,
    Y_OFFSET,
    YRES,
    Driver,
    rows,
    words,
)


def shows_nothing(driver: Driver) -> bool:
    (screen,) = driver.device.scanouts
    try:
        driver.screen()
    except NothingOnScanout:
        assert (screen.width, screen.height) == (0, 0)
        return True
    assert (screen.width, screen.height) != (0, 0)
    return False


def test_after_power_on_there_is_nothing_on_the_screen(driver: Driver) -> None:
    assert shows_nothing(driver)
    assert driver.device.status()["mode"] is None


def test_only_the_screen_that_there_is_can_be_looked_at(driver: Driver) -> None:
    for scanout in (-1, 1):
        with pytest.raises(IndexError, match="no scanout"):
            driver.host.drive(driver.device.capture(scanout))


def test_pixels_are_xrgb8888_from_the_start_of_the_framebuffer(driver: Driver) -> None:
    driver.enable(2, 2)
    driver.draw(0, words(0x00112233, 0x00445566, 0x00778899, 0x00AABBCC))
    screen = driver.screen()
    assert (screen.width, screen.height, screen.stride) == (2, 2, 8)
    assert screen.layout is PixelLayout.BGRX
    assert screen.pixels == bytes.fromhex("33221100 66554400 99887700 ccbbaa00")


def test_what_is_drawn_by_message_is_shown_and_read_back_both_ways(driver: Driver) -> None:
    driver.enable(1, 2)
    driver.write(0, 0x00112233, 4, VRAM)
    driver.draw(4, words(0x00445566))
    assert driver.screen().pixels == bytes.fromhex("33221100 66554400")
    assert driver.read(0, 8, VRAM) == 0x00445566_00112233
    driver.write(4 * MIB - 3, 0xABCDEF, 3, VRAM)
    assert driver.read(4 * MIB - 3, 3, VRAM) == 0xABCDEF


def test_what_firmware_sets_is_enough(driver: Driver) -> None:
    """SeaBIOS writes size, depth and ENABLED, and leaves the virtual width at 0."""
    driver.set(XRES, 64)
    driver.set(YRES, 2)
    driver.set(BPP, 32)
    driver.set(ENABLE, ENABLED)
    driver.draw(64 * 4, words(0x123456))
    assert rows(driver.screen())[1][:4] == bytes.fromhex("56341200")


def test_rows_are_as_far_apart_as_the_virtual_width(driver: Driver) -> None:
    driver.enable(1, 3, VIRT_WIDTH=5)
    driver.draw(0, words(*range(15)))
    assert rows(driver.screen()) == [words(0), words(5), words(10)]


def test_a_virtual_width_less_than_the_screen_counts_as_the_screens(driver: Driver) -> None:
    driver.enable(2, 2, VIRT_WIDTH=1)
    driver.draw(0, words(*range(4)))
    assert rows(driver.screen()) == [words(0, 1), words(2, 3)]


def test_the_offsets_are_pixels_across_and_rows_down(driver: Driver) -> None:
    driver.enable(2, 2, VIRT_WIDTH=5, X_OFFSET=3, Y_OFFSET=2)
    driver.draw(0, words(*range(20)))
    assert rows(driver.screen()) == [words(13, 14), words(18, 19)]


def test_a_page_flip_shows_the_other_half_of_the_memory(driver: Driver) -> None:
    driver.enable(512, 512)
    driver.draw(512 * 512 * 4, words(7) * 512 * 512)
    assert driver.screen().pixels == bytes(512 * 512 * 4)
    driver.set(Y_OFFSET, 512)
    assert driver.screen().pixels == words(7) * 512 * 512


@pytest.mark.parametrize(
    ("width", "height", "virtual", "x", "y", "fits"),
    [
        (1024, 1024, 1024, 0, 0, True),
        (1024, 1024, 1024, 1, 0, False),
        (1024, 1024, 1024, 0, 1, False),
        (1024, 1025, 1024, 0, 0, False),
        (1025, 1024, 1024, 0, 0, False),
        (1024, 1024, 1025, 0, 0, False),
        (1023, 1024, 1024, 1, 0, True),
        (1023, 1024, 1024, 2, 0, False),
        (1, 1, 1024, 1023, 1023, True),
        (1, 1, 1024, 0, 1024, False),
        (1, 1, 1, 0xFFFF, 0xFFFF, True),
        (1, 1, 0xFFFF, 0, 16, True),
        (1, 1, 0xFFFF, 0, 17, False),
        (1, 1, 0xFFFF, 0xFFFF, 0xFFFF, False),
        (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, False),
        (0, 768, 1024, 0, 0, False),
        (1024, 0, 1024, 0, 0, False),
        (16000, 1, 16000, 0, 0, True),
        (16001, 1, 16001, 0, 0, False),
        (1, 12000, 1, 0, 0, True),
        (1, 12001, 1, 0, 0, False),
    ],
)
def test_a_mode_is_shown_only_where_its_last_pixel_is_in_the_framebuffer(
    driver: Driver, width: int, height: int, virtual: int, x: int, y: int, fits: bool
) -> None:
    driver.draw(0, b"\x5a" * 4 * MIB)
    driver.enable(width, height, VIRT_WIDTH=virtual, X_OFFSET=x, Y_OFFSET=y)
    assert shows_nothing(driver) is not fits
    if fits:
        assert driver.screen().pixels == b"\x5a" * (4 * width * height)


@pytest.mark.parametrize("bpp", [0, 1, 4, 8, 17, 31, 33, 48, 0xFFFF])
def test_a_depth_that_has_no_colours_of_its_own_shows_nothing(driver: Driver, bpp: int) -> None:
    driver.enable(64, 64, bpp)
    assert shows_nothing(driver)


def test_a_mode_that_is_switched_off_shows_nothing(driver: Driver) -> None:
    driver.enable(64, 64)
    assert not shows_nothing(driver)
    driver.set(ENABLE, 0)
    assert shows_nothing(driver)


@pytest.mark.parametrize(
    ("bpp", "pixel", "colour"),
    # A channel of n bits is at its brightest where all n are set: 5 bits abcde are 8 bits abcdeabc.
    [
        (16, "00f8", "0000ff"),
        (16, "e007", "00ff00"),
        (16, "1f00", "ff0000"),
        (16, "1084", "848284"),
        (15, "007c", "0000ff"),
        (15, "e003", "00ff00"),
        (15, "1f00", "ff0000"),
        (15, "0080", "000000"),
        (15, "1042", "848484"),
        (24, "112233", "112233"),
    ],
)
def test_other_depths_are_shown_in_the_same_colours(
    driver: Driver, bpp: int, pixel: str, colour: str
) -> None:
    driver.enable(2, 1, bpp, X_OFFSET=1)
    size = len(pixel) // 2
    driver.draw(size, bytes.fromhex(pixel))
    screen = driver.screen()
    assert screen.layout is PixelLayout.BGRX
    assert screen.pixels == bytes.fromhex(colour) + bytes(5)


def test_rows_of_other_depths_have_their_own_bytes_per_pixel(driver: Driver) -> None:
    driver.enable(1, 2, 24, VIRT_WIDTH=3, X_OFFSET=1, Y_OFFSET=1)
    driver.draw(0, bytes(range(27)))
    assert driver.screen().pixels == bytes([12, 13, 14, 0, 21, 22, 23, 0])


@pytest.mark.parametrize(
    ("bpp", "pixel", "layout", "shown"),
    [
        (32, "00112233", PixelLayout.XRGB, "00112233"),
        (24, "112233", PixelLayout.BGRX, "33221100"),
        (16, "f800", PixelLayout.BGRX, "0000ff00"),
        (15, "03e0", PixelLayout.BGRX, "00ff0000"),
    ],
)
def test_a_big_endian_framebuffer_has_the_bytes_of_a_pixel_the_other_way_round(
    driver: Driver, bpp: int, pixel: str, layout: PixelLayout, shown: str
) -> None:
    driver.enable(1, 1, bpp)
    driver.write(QEXT_ENDIANNESS, BIG, 4)
    driver.draw(0, bytes.fromhex(pixel))
    screen = driver.screen()
    assert (screen.layout, screen.pixels) == (layout, bytes.fromhex(shown))


def test_a_screenshot_of_a_large_screen_lets_others_have_their_turn(driver: Driver) -> None:
    driver.enable(1024, 1024)
    work = driver.device.capture(0)
    for _ in range(3):
        assert isinstance(work.send(None), Pause)
        driver.set(ENABLE, 0)  # in between anything may happen
        driver.device.reset()
    with pytest.raises(StopIteration) as end:
        work.send(None)
    assert (end.value.value.buffer.width, end.value.value.buffer.height) == (1024, 1024)


def test_the_status_says_what_is_shown(driver: Driver) -> None:
    driver.enable(800, 600, VIRT_WIDTH=1024, X_OFFSET=1, Y_OFFSET=2)
    status = driver.device.status()
    assert status["mode"] == {"width": 800, "height": 600, "bpp": 32, "stride": 4096, "offset": 2 * 4096 + 4}
    assert (status["vgamem"], status["endianness"]) == (4 * MIB, "little")
    (screen,) = driver.device.scanouts
    assert (screen.index, screen.width, screen.height) == (0, 800, 600)


def test_a_reset_switches_the_screen_off_and_leaves_nothing_in_the_framebuffer(driver: Driver) -> None:
    driver.enable(64, 64, VIRT_WIDTH=100, X_OFFSET=1, Y_OFFSET=1)
    driver.write(QEXT_ENDIANNESS, BIG, 4)
    driver.draw(2 * MIB + 5, b"secret")
    driver.device.reset()
    assert shows_nothing(driver)
    assert [driver.get(index) for index in (XRES, YRES, BPP, ENABLE, VIRT_WIDTH, X_OFFSET, Y_OFFSET)] == [
        0
    ] * 7
    assert driver.read(QEXT_ENDIANNESS, 4) == 0x1E1E1E1E
    assert driver.device.region_read(VRAM, 0, 4 * MIB) == bytes(4 * MIB)


def test_the_last_picture_outlives_the_client(driver: Driver) -> None:
    driver.enable(64, 64)
    driver.draw(0, struct.pack("<I", 0xC0FFEE))
    driver.device.disconnect()
    assert driver.screen().pixels[:4] == bytes.fromhex("eeffc000")
