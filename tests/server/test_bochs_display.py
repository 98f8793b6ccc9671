"""A Bochs display and a vfio-user client that maps its framebuffer, on both transports."""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from PIL import Image, ImageChops

from devices.bochs_display import BochsDisplay, BochsDisplayOptions
from protocol import PciRegion, RegionFlags, SparseArea, SparseMmap
from server import serve
from server.cli import build_parser
from server.client import VfioUserClient, open_client
from server.control_client import capture, status
from server.control_protocol import ControlError
from server.screenshot import compose
from tests.fds import open_fds
from tests.guest.virtual_gpu import serving
from tests.server.register_device import RegisterDevice
from tests.server.running import TRANSPORTS, Server, running_server, with_transport

VRAM, MMIO = PciRegion.BAR0, PciRegion.BAR2
VRAM_SIZE = 16 << 20
WIDTH, HEIGHT = 64, 48
MODE = {1: WIDTH, 2: HEIGHT, 3: 32, 6: WIDTH, 8: 0, 9: 0, 4: 0x41}
"""Values by the index of the register, in a driver's order: XRES, YRES, BPP, VIRT_WIDTH, the offsets, ENABLE."""
RED, GREEN = b"\x00\x00\xff\x00", b"\x00\xff\x00\x00"
"""XRGB8888, little-endian."""

on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def device() -> Iterator[BochsDisplay]:
    device = BochsDisplay(BochsDisplayOptions(width=1024, height=768, vgamem=VRAM_SIZE))
    yield device
    device.close()


async def set_mode(client: VfioUserClient) -> None:
    for index, value in MODE.items():
        await client.region_write(MMIO, 0x500 + 2 * index, value.to_bytes(2, "little"))


@asynccontextmanager
async def mapped(client: VfioUserClient) -> AsyncIterator[mmap.mmap]:
    """The framebuffer, mapped as its region info says."""
    info, fds = await client.get_region_info(VRAM)
    with fds:
        assert len(fds) == 1
        fd = fds.take()
        assert fd is not None
    assert info.flags == RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
    assert info.capabilities == (SparseMmap((SparseArea(0, VRAM_SIZE),)),)
    try:
        mapping = mmap.mmap(fd, info.size, offset=info.offset)
    finally:
        os.close(fd)
    with mapping:
        yield mapping


async def colours(server: Server) -> list[object]:
    """The corners of the screen: red, green, blue each."""
    image = compose(await capture(server.control))
    assert image.size == (WIDTH, HEIGHT)
    return [image.getpixel((x, y)) for y in (0, HEIGHT - 1) for x in (0, WIDTH - 1)]


async def until_idle(server: Server) -> None:
    while server.engine.session is not None:
        await trio.lowlevel.checkpoint()


@on_both_transports
async def test_what_a_client_draws_through_its_mapping_is_on_the_screenshot(
    device: BochsDisplay, transport: str
) -> None:
    async with (
        running_server(device, with_transport(transport)) as server,
        open_client(server.path) as client,
        mapped(client) as framebuffer,
    ):
        with pytest.raises(ControlError, match="shows nothing"):
            await capture(server.control)
        await set_mode(client)
        assert await colours(server) == [(0, 0, 0)] * 4
        writes = (await status(server.control))["client"]["region_writes"]
        framebuffer[: 4 * WIDTH * HEIGHT] = RED * (WIDTH * HEIGHT - 1) + GREEN
        assert await colours(server) == [(255, 0, 0)] * 3 + [(0, 255, 0)]
        now = await status(server.control)
        assert now["client"]["region_writes"] == writes
        assert now["model"]["scanouts"][0]["width"] == WIDTH
        assert await client.region_read(VRAM, 4 * WIDTH * HEIGHT - 4, 8) == GREEN + bytes(4)


@on_both_transports
async def test_a_client_that_maps_nothing_draws_by_message(device: BochsDisplay, transport: str) -> None:
    async with (
        running_server(device, with_transport(transport)) as server,
        open_client(server.path) as client,
    ):
        await set_mode(client)
        await client.region_write(VRAM, 0, RED * WIDTH * HEIGHT)
        await client.region_write(VRAM, 4 * (WIDTH - 1), GREEN)
        assert await colours(server) == [(255, 0, 0), (0, 255, 0), (255, 0, 0), (255, 0, 0)]
        async with mapped(client) as framebuffer:
            assert framebuffer[4 * (WIDTH - 2) : 4 * WIDTH] == RED + GREEN
        await client.region_write(VRAM, VRAM_SIZE - 8, b"the end.")
        assert await client.region_read(VRAM, VRAM_SIZE - 8, 8) == b"the end."


@on_both_transports
async def test_the_picture_outlives_the_client_and_a_reset_ends_it(
    device: BochsDisplay, transport: str
) -> None:
    before = open_fds()
    async with running_server(device, with_transport(transport)) as server:
        async with open_client(server.path) as client, mapped(client) as framebuffer:
            await set_mode(client)
            framebuffer[: 4 * WIDTH] = RED * WIDTH
        await until_idle(server)
        assert await colours(server) == [(255, 0, 0)] * 2 + [(0, 0, 0)] * 2
        async with open_client(server.path) as client, mapped(client) as framebuffer:
            assert framebuffer[:4] == RED
            await client.reset()
            assert framebuffer[: 4 * WIDTH] == bytes(4 * WIDTH)
            with pytest.raises(ControlError, match="shows nothing"):
                await capture(server.control)
        await until_idle(server)
    assert open_fds() == before


async def run(*arguments: str) -> str:
    """The output of ``vgpud``, which has to succeed."""
    done = await trio.run_process([sys.executable, "-m", "server", *arguments], capture_stdout=True)
    return done.stdout.decode()


def pictures_in(trace: Path, folder: Path) -> list[Image.Image]:
    """What ``vgpud trace export --frames`` has made of a trace, in order."""
    pictures = []
    for file in sorted(folder.iterdir()):
        with Image.open(file) as picture:
            pictures.append(picture.convert("RGB"))
    assert pictures, trace
    return pictures


@on_both_transports
async def test_a_recorded_session_shows_replays_and_gives_the_pictures_that_were_on_the_screen(
    tmp_path: Path, transport: str
) -> None:
    trace = tmp_path / "trace.pcapng"
    options = ("--transport", transport, "--trace", str(trace))
    device = f"bochs-display,width=1024,height=768,vgamem={VRAM_SIZE}"
    noise = random.Random(1).randbytes(4 * WIDTH * HEIGHT)  # noqa: S311
    async with (
        serving(tmp_path, *options, device=device) as server,
        open_client(server.device) as client,
        mapped(client) as framebuffer,
    ):
        await client.region_read(MMIO, 0x500, 2)
        await set_mode(client)
        framebuffer[: 4 * WIDTH * HEIGHT] = RED * (WIDTH * HEIGHT)
        first = compose(await capture(server.control)).convert("RGB")
        assert first.getpixel((0, 0)) == (255, 0, 0)
        await client.reset()
        await set_mode(client)
        framebuffer[: len(noise)] = noise
        # What was drawn is read by message, also where it is not on the screen.
        framebuffer[VRAM_SIZE // 2 : VRAM_SIZE // 2 + 4] = RED
        assert await client.region_read(VRAM, VRAM_SIZE // 2, 4) == RED
        await client.region_write(VRAM, VRAM_SIZE // 2, GREEN)
        assert await client.region_read(VRAM, VRAM_SIZE // 2, 4) == GREEN
        framebuffer[8:12] = GREEN
        assert await client.region_read(VRAM, 4, 12) == noise[4:8] + GREEN + noise[12:16]
        last = compose(await capture(server.control)).convert("RGB")
    shown = await run("trace", "show", str(trace))
    assert "BAR2 dispi.id 0xb0c5" in shown
    assert "BAR2 dispi.xres 0x0040" in shown
    assert f"BAR0 framebuffer+{VRAM_SIZE // 2} 0x0000ff00" in shown
    events = await run("trace", "show", "--events", str(trace))
    assert (
        f"{'mapped write':<24} BAR0 {VRAM_SIZE // 2 + 2:#x}-{VRAM_SIZE // 2 + 2:#x} (1 byte) 0xff" in events
    )
    for other in TRANSPORTS:
        replayed = await run("trace", "replay", "--serve", "recorded", "--transport", other, str(trace))
        assert "all as recorded" in replayed
    await run("trace", "export", "--frames", str(tmp_path / "frames"), str(trace))
    pictures = pictures_in(trace, tmp_path / "frames")
    assert ImageChops.difference(pictures[-1], last).getbbox() is None
    assert any(picture.size == first.size and picture.tobytes() == first.tobytes() for picture in pictures)


def test_a_server_that_ends_closes_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = RegisterDevice()
    device.share_bar3()
    before = open_fds()
    monkeypatch.setattr(serve, "create_device", lambda *_: device)
    monkeypatch.setattr("server.serve.logging.configure", lambda *_: None)
    arguments = build_parser().parse_args(["serve", "--socket-path", str(tmp_path / "no" / "folder")])
    assert serve.run_serve(arguments) != 0
    assert open_fds() == before - 1
