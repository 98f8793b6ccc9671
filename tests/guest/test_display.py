"""Screens of a running guest, changed by ``vgpud display``: its stock driver sees each change as of a monitor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from server.control_client import display
from server.display.protocol import DisplayChange
from server.guest.run import Guest
from server.guest.screen import is_drawn_on, settled
from tests.guest.support import GuestParts
from tests.guest.test_virtual_gpu import on_both_transports
from tests.guest.virtual_gpu import PICTURE_SECONDS, POLL_SECONDS, serving

pytestmark = pytest.mark.guest

FIRST_DETAILED_TIMING = 54
"""Where it is in an EDID (E-EDID 1.4, 3.10)."""
PREFERRED_MODE = re.compile(r"^\s+#\d+ (\d+x\d+) .* type: .*preferred", re.MULTILINE)


def connector(number: int) -> str:
    return f"/sys/class/drm/card0-Virtual-{number + 1}"


async def active_pixels(guest: Guest, number: int) -> tuple[int, int]:
    """Width and height of the first detailed timing in the EDID that the guest has of a screen."""
    edid = bytes.fromhex(await guest.check(f"xxd -p {connector(number)}/edid | tr -d '\\n'"))
    timing = edid[FIRST_DETAILED_TIMING:]
    return timing[2] | timing[4] >> 4 << 8, timing[5] | timing[7] >> 4 << 8


async def preferred_modes(guest: Guest) -> list[str]:
    """The preferred mode of each screen that is connected, as modetest says."""
    return PREFERRED_MODE.findall(await guest.check("modetest -M virtio_gpu -c"))


async def connection(guest: Guest, number: int) -> str:
    return (await guest.check(f"cat {connector(number)}/status")).strip()


async def until_connection(guest: Guest, number: int, status: str) -> None:
    """Wait until the driver has seen to the event; nothing asks it to."""
    with trio.fail_after(PICTURE_SECONDS):
        while await connection(guest, number) != status:
            await trio.sleep(POLL_SECONDS)


async def until_active_pixels(guest: Guest, number: int, size: tuple[int, int]) -> None:
    with trio.fail_after(PICTURE_SECONDS):
        while await active_pixels(guest, number) != size:
            await trio.sleep(POLL_SECONDS)


@on_both_transports
async def test_a_guest_sees_a_screen_resized_and_the_other_unplugged_and_plugged_in_again(
    parts: GuestParts, tmp_path: Path, transport: str
) -> None:
    device = "virtio-gpu,scanouts=2,width=1024,height=768"
    async with (
        serving(tmp_path, "--transport", transport, device=device) as server,
        parts.boot(server.gpu()) as guest,
    ):
        await settled(server.control, is_drawn_on, PICTURE_SECONDS)
        assert await preferred_modes(guest) == ["1024x768", "1024x768"]

        await display(server.control, DisplayChange(0, (1920, 1080)))
        await until_active_pixels(guest, 0, (1920, 1080))
        assert await active_pixels(guest, 1) == (1024, 768)
        assert await preferred_modes(guest) == ["1920x1080", "1024x768"]

        await display(server.control, DisplayChange(1, connected=False))
        await until_connection(guest, 1, "disconnected")
        assert await connection(guest, 0) == "connected"
        assert await preferred_modes(guest) == ["1920x1080"]

        (_, second) = await display(server.control, DisplayChange(1, (640, 480), connected=True))
        assert (second.preferred_width, second.preferred_height) == (640, 480)
        await until_connection(guest, 1, "connected")
        await until_active_pixels(guest, 1, (640, 480))
        assert await preferred_modes(guest) == ["1920x1080", "640x480"]
        assert (await server.status())["model"]["needs_reset"] is False
