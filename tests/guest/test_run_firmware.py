"""``vgpud run`` with a Bochs display: what the firmware draws is on its screen, as with QEMU's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.guest.qemu import Qemu
from server.guest.run import launched
from server.guest.screen import settled
from tests.guest.console_text import Font
from tests.guest.support import GuestParts
from tests.guest.test_bochs_display import DEVICE, LONGEST_SPLASH, font, has_text
from tests.guest.test_run import RUN, SpelledMachine, program
from tests.guest.test_virtual_gpu import on_both_transports
from tests.guest.virtual_gpu import PICTURE_SECONDS

__all__ = ["font", "program"]

pytestmark = pytest.mark.guest


@on_both_transports
async def test_the_boot_menu_is_on_the_screen_of_a_bochs_display_that_was_added(
    parts: GuestParts, program: Path, tmp_path: Path, font: Font, transport: str
) -> None:
    control = tmp_path / "control"
    options = ("--gpu", DEVICE, "--transport", transport, "--control", str(control))
    qemu = Qemu((*RUN, *options, "--", str(program)), parts.qemu.version)
    spelling = f"-M q35 -m 512 -boot menu=on,splash-time={LONGEST_SPLASH}"
    machine = SpelledMachine(parts.kernel.image, parts.image(), parts.accel, spelling=spelling)
    async with launched(qemu, machine):
        await settled(control, has_text("Press ESC for boot menu.", font), PICTURE_SECONDS)
