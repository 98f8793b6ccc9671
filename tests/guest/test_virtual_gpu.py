"""A stock guest, its unmodified virtio_gpu driver, a real QEMU, and our virtual GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from devices.display import Frame
from server.control_client import capture
from server.guest.screen import is_drawn_on, settled
from server.screenshot import compose
from tests.guest.support import GuestParts
from tests.guest.virtual_gpu import (
    PICTURE_SECONDS,
    POLL_SECONDS,
    Server,
    drawn_pattern,
    serving,
    show_test_pattern,
)

pytestmark = pytest.mark.guest

on_both_transports = pytest.mark.parametrize("transport", ["native", "libvfio-user"])

SMPTE_TOP = (
    (192, 192, 192),
    (192, 192, 0),
    (0, 192, 192),
    (0, 192, 0),
    (192, 0, 192),
    (192, 0, 0),
    (0, 0, 192),
)
"""The upper bars of the SMPTE pattern, red, green, blue: libdrm's tests/util/pattern.c."""
PAGES_OF_MODE = 1024 * 768 * 4 // 4096


def top_bars(frame: Frame) -> tuple[object, ...]:
    image = compose(frame)
    width = frame.buffer.width
    return tuple(image.getpixel(((2 * bar + 1) * width // 14, 8)) for bar in range(7))


@on_both_transports
@pytest.mark.parametrize("blob", ["on", "off"])
async def test_the_stock_driver_draws_its_console_and_modetest_its_pattern(
    parts: GuestParts, tmp_path: Path, blob: str, transport: str
) -> None:
    device = f"virtio-gpu,blob={blob},width=1024,height=768"
    async with (
        serving(tmp_path, "--transport", transport, device=device) as server,
        parts.boot(server.gpu()) as guest,
    ):
        console = await settled(server.control, is_drawn_on, PICTURE_SECONDS)
        assert (console.buffer.width, console.buffer.height) == (1024, 768)
        pattern = await drawn_pattern(guest, server)
        assert top_bars(pattern) == SMPTE_TOP
        status = await server.status()
        assert status["client"]["memory"]["pinned_pages"] >= PAGES_OF_MODE
        assert status["model"]["needs_reset"] is False
        assert status["model"]["refused"] == {}
        commands = status["model"]["commands"]
        assert ("set_scanout_blob" in commands) == (blob == "on")


async def memory_of(server: Server) -> dict[str, Any]:
    memory: dict[str, Any] = (await server.status())["client"]["memory"]
    return memory


async def test_retained_pages_are_found_again_when_the_guest_draws_the_same_thing_again(
    parts: GuestParts, tmp_path: Path
) -> None:
    device = "virtio-gpu,width=1024,height=768"
    async with (
        serving(tmp_path, "--dma-retain", "64M", device=device) as server,
        parts.boot(server.gpu()) as guest,
    ):
        for _ in range(3):
            pattern = await drawn_pattern(guest, server)
            assert top_bars(pattern) == SMPTE_TOP
            await guest.check("killall sleep modetest; while pidof modetest; do :; done")
        with trio.fail_after(PICTURE_SECONDS):  # the guest does not wait for the end of what it has asked for
            while (memory := await memory_of(server))["retained_pages"] < PAGES_OF_MODE:
                await trio.sleep(POLL_SECONDS)
        assert memory["hits"] > 0
        assert memory["dma_mapped_pages"] == memory["pinned_pages"] + memory["retained_pages"]
        assert memory["locked_bytes"] <= memory["locked_limit"]


async def test_a_screenshot_has_the_cursor_that_the_guest_shows(parts: GuestParts, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, device="virtio-gpu,width=1024,height=768") as server,
        parts.boot(server.gpu()) as guest,
    ):
        await show_test_pattern(guest, options="-C")
        with trio.fail_after(PICTURE_SECONDS):
            while (frame := await capture(server.control)).cursor is None:
                await trio.sleep(POLL_SECONDS)
        image = frame.cursor.image
        assert (image.width, image.height) == (64, 64)
        assert 0 <= frame.cursor.x < 1024
        assert 0 <= frame.cursor.y < 768
        assert compose(frame).tobytes() != compose(replace(frame, cursor=None)).tobytes()


@on_both_transports
async def test_behind_an_iommu_the_gpu_works_page_by_page(
    parts: GuestParts, tmp_path: Path, transport: str
) -> None:
    async with (
        serving(tmp_path, "--transport", transport, device="virtio-gpu,width=1024,height=768") as server,
        parts.boot(server.gpu(), iommu=True) as guest,
    ):
        assert "DMAR" in await guest.check("dmesg")
        pattern = await drawn_pattern(guest, server)
        assert top_bars(pattern) == SMPTE_TOP
        status = await server.status()
        assert status["client"]["dma_maps"] > PAGES_OF_MODE
        assert status["client"]["dma_unmaps"] > 0
        assert status["client"]["memory"]["files"] == 1
        assert status["model"]["needs_reset"] is False


@on_both_transports
async def test_memory_that_is_not_shared_is_reached_by_messages(
    parts: GuestParts, tmp_path: Path, transport: str
) -> None:
    async with (
        serving(tmp_path, "--transport", transport, device="virtio-gpu,width=1024,height=768") as server,
        parts.boot(server.gpu(), shared_memory=False) as guest,
    ):
        pattern = await drawn_pattern(guest, server)
        assert top_bars(pattern) == SMPTE_TOP
        status = await server.status()
        assert status["client"]["memory"]["messages"] > 0
        assert status["client"]["memory"]["pinned_pages"] == 0
        assert "share=on" in "\n".join(server.process.log.tail)


@on_both_transports
async def test_a_driver_that_lets_go_of_the_device_gives_its_pages_back(
    parts: GuestParts, tmp_path: Path, transport: str
) -> None:
    async with (
        serving(tmp_path, "--transport", transport) as server,
        parts.boot(server.gpu(addr="0x5")) as guest,
    ):
        await settled(server.control, is_drawn_on, PICTURE_SECONDS)
        await guest.check("echo 0 >/sys/class/vtconsole/vtcon1/bind")
        device = "$(basename /sys/bus/pci/devices/0000:00:05.0/virtio*)"
        await guest.check(f"echo {device} >/sys/bus/virtio/drivers/virtio_gpu/unbind")
        assert (await server.status())["client"]["memory"]["pinned_pages"] == 0
        assert (await server.status())["model"]["resources"] == 0
        await guest.check(f"echo {device} >/sys/bus/virtio/drivers/virtio_gpu/bind")
        pattern = await drawn_pattern(guest, server)
        assert top_bars(pattern) == SMPTE_TOP


async def test_two_screens_show_two_pictures(parts: GuestParts, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, device="virtio-gpu,scanouts=2,width=1024,height=768") as server,
        parts.boot(server.gpu()) as guest,
    ):
        pattern = await drawn_pattern(guest, server, scanout=1)
        assert top_bars(pattern) == SMPTE_TOP
        scanouts = (await server.status())["model"]["scanouts"]
        assert [scanout["connected"] for scanout in scanouts] == [True, True]


@on_both_transports
async def test_the_next_guest_is_served_when_one_was_killed(
    parts: GuestParts, tmp_path: Path, transport: str
) -> None:
    async with serving(tmp_path, "--transport", transport) as server:
        idle = server.descriptors()
        for _ in range(2):
            async with parts.boot(server.gpu()):
                await settled(server.control, is_drawn_on, PICTURE_SECONDS)
                assert server.descriptors() > idle
            await server.until_idle(idle)
        assert (await server.status())["clients_served"] == 2


async def test_two_servers_give_one_guest_two_gpus(parts: GuestParts, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, "--transport", "native", name="first") as first,
        serving(tmp_path, "--transport", "libvfio-user", name="second") as second,
        parts.boot(first.gpu(), second.gpu()) as guest,
    ):
        cards = await guest.check("ls -d /sys/class/drm/card?")
        assert len(cards.split()) == 2
        for server in (first, second):
            assert (await server.status())["model"]["driver_ok"] is True
