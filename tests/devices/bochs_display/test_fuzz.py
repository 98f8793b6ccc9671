"""Whatever a guest writes, nothing is raised, and a screenshot has bytes of the framebuffer and no others."""

from hypothesis import given
from hypothesis import strategies as st

from devices.display import NothingOnScanout
from tests.devices.bochs_display.driver import (
    BPP,
    CONFIG,
    DISPI,
    ENABLE,
    MIB,
    MMIO,
    VIRT_WIDTH,
    VRAM,
    X_OFFSET,
    XRES,
    Y_OFFSET,
    YRES,
    Driver,
    plugged_in,
)

SIZE = {VRAM: 4 * MIB, MMIO: 0x1000, CONFIG: 256}
PAINT = 0x5A
OPAQUE = b"\x5a" * 4 * MIB

SIDE = st.one_of(st.integers(0, 70), st.sampled_from([1023, 1024, 1025, 12001, 16000, 16001, 0x7FFF, 0xFFFF]))
REGISTERS = {
    XRES: SIDE,
    YRES: SIDE,
    BPP: st.sampled_from([0, 8, 15, 16, 24, 32, 32, 32, 0xFFFF]),
    ENABLE: st.sampled_from([0, 1, 1, 1, 0x41, 0xFFFF]),
    VIRT_WIDTH: SIDE,
    X_OFFSET: SIDE,
    Y_OFFSET: SIDE,
}


@st.composite
def dispi_writes(draw: st.DrawFn) -> tuple[int, int, bytes]:
    index = draw(st.sampled_from(list(REGISTERS)))
    return MMIO, DISPI + 2 * index, draw(REGISTERS[index]).to_bytes(2, "little")


@st.composite
def any_accesses(draw: st.DrawFn) -> tuple[int, int, bytes | int]:
    """A write of bytes, or a read of so many: inside of a region, as the host sees to it."""
    region = draw(st.sampled_from([MMIO, MMIO, VRAM, CONFIG]))
    count = draw(st.integers(0, 64))
    end = SIZE[region] - count
    near = st.sampled_from([0x3F0, 0x4FF, 0x500, 0x510, 0x5FC, 0x600, 0x604]).filter(lambda at: at <= end)
    offset = draw(st.one_of(st.integers(0, end), near if region == MMIO else st.just(end)))
    if draw(st.booleans()):
        return region, offset, count
    return (
        region,
        offset,
        bytes([PAINT]) * count if region == VRAM else draw(st.binary(min_size=count, max_size=count)),
    )


def do(driver: Driver, access: tuple[int, int, bytes | int]) -> None:
    region, offset, what = access
    if isinstance(what, int):
        assert len(driver.device.region_read(region, offset, what)) == what
    else:
        driver.device.region_write(region, offset, memoryview(what))


def look(driver: Driver) -> None:
    """All of the framebuffer is of one colour, so what is not was read from somewhere else."""
    (said,) = driver.device.scanouts
    try:
        screen = driver.screen()
    except NothingOnScanout:
        assert (said.width, said.height) == (0, 0)
        return
    assert (screen.width, screen.height) == (said.width, said.height)
    assert screen.stride == 4 * screen.width
    assert len(screen.pixels) == screen.stride * screen.height <= 2 * SIZE[VRAM]
    assert screen.pixels == screen.pixels[:4] * (screen.width * screen.height)
    assert screen.pixels[:4] != bytes(4)


@given(st.lists(st.one_of(dispi_writes(), any_accesses(), st.just("reset")), max_size=40))
def test_whatever_is_accessed_screenshots_stay_inside_of_the_framebuffer(
    sequence: list[tuple[int, int, bytes | int] | str],
) -> None:
    with plugged_in(vgamem=4 * MIB, width=1024, height=768) as driver:
        driver.draw(0, OPAQUE)
        for step in sequence:
            if isinstance(step, str):
                driver.device.reset()
                driver.draw(0, OPAQUE)
            else:
                do(driver, step)
            look(driver)
        assert driver.host.interrupts == []


@given(st.fixed_dictionaries(REGISTERS))
def test_whatever_mode_is_set_screenshots_stay_inside_of_the_framebuffer(values: dict[int, int]) -> None:
    with plugged_in(vgamem=4 * MIB, width=1024, height=768) as driver:
        driver.draw(0, OPAQUE)
        for index, value in values.items():
            driver.set(index, value)
        look(driver)
