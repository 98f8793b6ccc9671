"""A Bochs display in a stock guest: on the screen are the firmware, the boot menu, the kernel's console, a picture."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from devices.display import PixelBuffer
from server.guest.run import Guest, launched
from server.guest.screen import has_colour_bars, settled
from tests.guest.console_text import VGA_BIOS, Font, text_on, vga_font
from tests.guest.support import GuestParts
from tests.guest.test_virtual_gpu import SMPTE_TOP, on_both_transports, top_bars
from tests.guest.virtual_gpu import PICTURE_SECONDS, Server, serving

pytestmark = pytest.mark.guest

DEVICE = "bochs-display,width=1024,height=768"
DRIVER = "bochs-drm"
"""The name of Linux' driver (drivers/gpu/drm/tiny/bochs.c)."""
LONGEST_SPLASH = "65535"
"""Milliseconds: more than firmware needs to wait for a key that comes."""


@pytest.fixture(scope="module")
def font(parts: GuestParts) -> Font:
    return vga_font(parts.qemu)


def has_text(text: str, font: Font) -> Callable[[PixelBuffer], bool]:
    return lambda buffer: text in text_on(buffer, font)


async def text_with(server: Server, text: str, font: Font) -> str:
    """Wait until ``text`` is on the screen, and return all that is there."""
    frame = await settled(server.control, has_text(text, font), PICTURE_SECONDS)
    assert (frame.buffer.width, frame.buffer.height) == (1024, 768)
    return text_on(frame.buffer, font)


async def show_test_pattern(guest: Guest) -> None:
    listing = await guest.check(f"modetest -M {DRIVER} -c")
    (connector,) = re.findall(r"^(\d+)\s+\d+\s+connected", listing, re.MULTILINE)
    await guest.check(f"sleep 1000 | modetest -M {DRIVER} -s {connector}:1024x768 >/tmp/log 2>&1 &")


async def press(monitor: Path, key: str) -> None:
    """Press a key on the guest's keyboard, through QEMU's monitor."""
    keys = {"keys": [{"type": "qcode", "data": key}]}
    async with await trio.open_unix_socket(os.fspath(monitor)) as stream:
        answers = b""
        for command in ({"execute": "qmp_capabilities"}, {"execute": "send-key", "arguments": keys}):
            await stream.send_all(json.dumps(command).encode() + b"\n")
        while answers.count(b'"return"') < 2:
            answers += await stream.receive_some(1 << 16)
            assert b'"error"' not in answers, answers


@on_both_transports
async def test_the_stock_bochs_driver_draws_its_console_and_modetest_its_pattern(
    parts: GuestParts, tmp_path: Path, font: Font, transport: str
) -> None:
    image = parts.image(load=("bochs",))
    async with (
        serving(tmp_path, "--transport", transport, device=DEVICE) as server,
        parts.boot(server.gpu(), initrd=image) as guest,
    ):
        await guest.check("echo seen by nobody but the screen >/dev/tty0")
        assert "Found EDID data blob" in await text_with(server, "seen by nobody but the screen", font)
        await show_test_pattern(guest)
        pattern = await settled(server.control, has_colour_bars, PICTURE_SECONDS)
        assert top_bars(pattern) == SMPTE_TOP
        status = await server.status()
        assert status["client"]["errors"] == 0
        assert status["model"]["mode"]["width"] == 1024


@on_both_transports
async def test_the_screen_goes_from_the_firmware_and_its_boot_menu_to_the_kernels_console(
    parts: GuestParts, tmp_path: Path, font: Font, transport: str
) -> None:
    monitor = tmp_path / "monitor.sock"
    async with serving(tmp_path, "--transport", transport, device=DEVICE) as server:
        machine = parts.machine(
            server.gpu(romfile=VGA_BIOS),
            initrd=parts.image(load=("bochs",)),
            qmp=monitor,
            extra=("-boot", f"menu=on,splash-time={LONGEST_SPLASH}"),
        )
        async with launched(parts.qemu, machine) as guest:
            assert "SeaBIOS (version " in await text_with(server, "Press ESC for boot menu.", font)
            await press(monitor, "esc")
            menu = await text_with(server, "Select boot device:", font)
            (kernel,) = re.findall(r"^(\d)\. .*[Ll]inux", menu, re.MULTILINE)
            await press(monitor, kernel)
            await guest.ready()
            await guest.check("echo seen by nobody but the screen >/dev/tty0")
            assert "SeaBIOS" not in await text_with(server, "seen by nobody but the screen", font)
