"""What is where, and what it says."""

from typing import Any

import pytest

from devices.bochs_display import BochsDisplayOptions
from devices.contract import MmapArea, RegionAccess
from devices.models import MODELS
from devices.registry import OptionError, create_device
from protocol import PciRegion
from tests.devices.bochs_display.driver import (
    BANK,
    BIG,
    BPP,
    CONFIG,
    DISPI,
    ENABLE,
    GETCAPS,
    ID,
    LITTLE,
    MEMORY_64K,
    MIB,
    MMIO,
    QEXT_ENDIANNESS,
    QEXT_SIZE,
    VIRT_HEIGHT,
    VRAM,
    X_OFFSET,
    XRES,
    Y_OFFSET,
    YRES,
    Driver,
    plugged_in,
)


def test_it_is_a_legacy_free_display_with_extended_registers(driver: Driver) -> None:
    assert driver.device.region_read(CONFIG, 0, 4) == bytes.fromhex("34 12 11 11")
    assert driver.device.region_read(CONFIG, 8, 4) == bytes.fromhex("02 00 80 03")
    assert driver.device.region_read(CONFIG, 0x2C, 4) == bytes.fromhex("f4 1a 00 11")


def test_it_has_no_interrupts_of_its_own(driver: Driver) -> None:
    assert [irq.count for irq in driver.device.irqs[:3]] == [0, 0, 0]
    assert driver.read(0x3D, 1, CONFIG) == 0


@pytest.mark.parametrize(
    ("bar", "size"),
    # All ones read back as the address bits that are there; bit 3 is "prefetchable" (PCI 3.0, 6.2.5.1).
    [(0, 0xFF000008), (1, 0), (2, 0xFFFFF000), (3, 0), (4, 0), (5, 0)],
)
def test_the_bars_are_the_framebuffer_and_a_page_of_registers(bar: int, size: int) -> None:
    with plugged_in() as driver:
        driver.write(0x10 + 4 * bar, 0xFFFFFFFF, 4, CONFIG)
        assert driver.read(0x10 + 4 * bar, 4, CONFIG) == size


def test_clients_may_map_the_whole_framebuffer_and_nothing_else(driver: Driver) -> None:
    framebuffer = driver.device.regions[VRAM]
    assert framebuffer.size == 4 * MIB
    assert framebuffer.access == RegionAccess.READ | RegionAccess.WRITE
    assert framebuffer.mmap_areas == (MmapArea(0, 4 * MIB),)
    assert framebuffer.shared is not None
    assert framebuffer.shared.offset == 0
    others = [region for index, region in enumerate(driver.device.regions) if index != VRAM]
    assert all(region.shared is None and not region.mmap_areas for region in others)


def test_the_interface_is_the_version_that_says_how_much_memory_there_is(driver: Driver) -> None:
    assert driver.get(ID) == 0xB0C5
    assert driver.get(MEMORY_64K) == 4 * MIB // (64 * 1024)
    for index in (ID, MEMORY_64K):
        driver.set(index, 0xB0C0)
    assert (driver.get(ID), driver.get(MEMORY_64K)) == (0xB0C5, 64)


@pytest.mark.parametrize("index", [XRES, YRES, BPP, BANK, VIRT_HEIGHT, X_OFFSET, Y_OFFSET])
def test_a_register_keeps_what_was_written(driver: Driver, index: int) -> None:
    assert driver.get(index) == 0
    driver.set(index, 0xABCD)
    assert driver.get(index) == 0xABCD


def test_two_registers_are_reached_by_one_access_of_32_bits(driver: Driver) -> None:
    driver.write(DISPI + 2 * XRES, 600 << 16 | 800, 4)
    assert (driver.get(XRES), driver.get(YRES)) == (800, 600)
    assert driver.read(DISPI + 2 * XRES, 4) == 600 << 16 | 800


def test_the_low_half_of_a_register_can_be_read_but_not_written_alone(driver: Driver) -> None:
    driver.set(XRES, 0x0403)
    driver.write(DISPI + 2 * XRES, 0xFF, 1)
    assert [driver.read(DISPI + 2 * XRES + byte, 1) for byte in (0, 1)] == [0x03, 0x04]


def test_getcaps_shows_the_largest_mode_in_place_of_the_one_that_is_set(driver: Driver) -> None:
    driver.enable(800, 600, 16)
    driver.set(ENABLE, GETCAPS)
    assert (driver.get(XRES), driver.get(YRES), driver.get(BPP)) == (16000, 12000, 32)
    driver.set(ENABLE, 0)
    assert (driver.get(XRES), driver.get(YRES), driver.get(BPP)) == (800, 600, 16)


def test_the_extended_registers_say_their_size_and_take_the_two_byte_orders(driver: Driver) -> None:
    assert driver.read(QEXT_SIZE, 4) == 8
    assert driver.read(QEXT_ENDIANNESS, 4) == LITTLE
    driver.write(QEXT_ENDIANNESS, BIG, 4)
    assert driver.read(QEXT_ENDIANNESS, 4) == BIG
    for nonsense in (0, 0xBEBEBEBF, 0xFFFFFFFF):
        driver.write(QEXT_ENDIANNESS, nonsense, 4)
        assert driver.read(QEXT_ENDIANNESS, 4) == BIG
    driver.write(QEXT_SIZE, 4, 4)
    assert driver.read(QEXT_SIZE, 4) == 8


def test_between_the_registers_there_are_zeros_that_stay(driver: Driver) -> None:
    for offset in (0x400, 0x41F, 0x516, 0x608, 0xFFF):
        driver.write(offset, 0xFF, 1)
        assert driver.read(offset, 1) == 0


def edid_mode(edid: bytes) -> tuple[int, int]:
    """The first detailed timing's active pixels (E-EDID 1.4, 3.10.2)."""
    return edid[56] | (edid[58] & 0xF0) << 4, edid[59] | (edid[61] & 0xF0) << 4


def edid_of(driver: Driver) -> bytes:
    return driver.device.region_read(MMIO, 0, 0x400)


def test_the_edid_prefers_the_mode_of_the_options_and_zeros_follow_it(driver: Driver) -> None:
    edid = edid_of(driver)
    assert edid[:8] == bytes.fromhex("00 ff ff ff ff ff ff 00")
    assert sum(edid[:128]) % 256 == 0
    assert edid_mode(edid) == (1024, 768)
    assert edid[126] == 0  # extension blocks
    assert edid[128:] == bytes(0x400 - 128)
    driver.write(0, 0xFFFFFFFF, 4)
    assert edid_of(driver) == edid


def test_without_edid_there_are_zeros() -> None:
    with plugged_in(edid=False) as driver:
        assert edid_of(driver) == bytes(0x400)


def test_a_new_preferred_mode_is_in_the_edid_and_outlives_a_reset(driver: Driver) -> None:
    driver.device.set_mode(0, 800, 600)
    driver.device.reset()
    assert edid_mode(edid_of(driver)) == (800, 600)
    (screen,) = driver.device.scanouts
    assert (screen.connected, screen.preferred_width, screen.preferred_height) == (True, 800, 600)


def test_preferred_modes_that_cannot_be_are_refused(driver: Driver) -> None:
    for width, height, reason in (
        (63, 600, "64 to 16000"),
        (800, 12001, "64 to 12000"),
        (1024, 1025, "give at least 4198400 bytes"),
    ):
        with pytest.raises(ValueError, match=reason):
            driver.device.set_mode(0, width, height)
    with pytest.raises(ValueError, match="cannot be unplugged"):
        driver.device.set_mode(0, 800, 600, connected=False)
    with pytest.raises(IndexError, match="no scanout 1"):
        driver.device.set_mode(1, 800, 600)
    assert edid_mode(edid_of(driver)) == (1024, 768)


@pytest.mark.parametrize(
    ("region", "offset", "name"),
    [
        (VRAM, 0, "framebuffer"),
        (VRAM, 0x1000, "framebuffer+4096"),
        (VRAM, 4 * MIB, None),
        (MMIO, 54, "edid+54"),
        (MMIO, 0x500, "dispi.id"),
        (MMIO, 0x502, "dispi.xres"),
        (MMIO, 0x503, "dispi.xres+1"),
        (MMIO, 0x514, "dispi.video_memory_64k"),
        (MMIO, 0x516, None),
        (MMIO, 0x604, "qext.endianness"),
        (CONFIG, 0x10, "bar0"),
    ],
)
def test_registers_have_the_names_of_the_specifications(
    driver: Driver, region: int, offset: int, name: str | None
) -> None:
    assert driver.device.register_name(region, offset) == name


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"vgamem": 2 * MIB}, "power of two from 4M to 256M"),
        ({"vgamem": 12 * MIB}, "power of two from 4M to 256M"),
        ({"vgamem": 512 * MIB}, "power of two from 4M to 256M"),
        ({"vgamem": 4 * MIB, "width": 1280, "height": 1024}, "give at least 5242880 bytes"),
        ({"width": 63}, "choose 64 to 16000 pixels"),
        ({"height": 12001}, "64 to 12000"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line_that_names_the_fix(
    options: dict[str, Any], fix: str
) -> None:
    with pytest.raises(ValueError, match=fix) as error:
        BochsDisplayOptions(**options)
    assert "\n" not in str(error.value)


def test_the_command_lines_options_become_a_device() -> None:
    device = create_device(MODELS, "bochs-display,width=1920,height=1080,vgamem=32M,edid=off")
    assert device.regions[PciRegion.BAR0].size == 32 * MIB
    assert device.region_read(MMIO, 0, 8) == bytes(8)
    device.close()
    with pytest.raises(OptionError, match="bochs-display: vgamem=5242880: give a power of two"):
        create_device(MODELS, "bochs-display,vgamem=5M")
