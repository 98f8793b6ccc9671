"""A virtual GPU that comes to a running guest without PCI Express, and goes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.guest.run import booted
from server.hotplug.attach import Wish, attach
from server.hotplug.detach import detach
from server.hotplug.qmp import connected
from tests.guest.support import GuestParts
from tests.guest.test_hotplug import SECONDS, reaped, temporary
from tests.guest.test_run import SpelledMachine

__all__ = ["temporary"]

pytestmark = pytest.mark.guest


async def test_a_pc_has_a_bus_to_plug_a_gpu_in_without_a_port(parts: GuestParts, tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    memory = "-m 512 -object memory-backend-memfd,id=memory,size=512M,share=on"
    spelling = f"-M pc,memory-backend=memory {memory} -qmp unix:{path},server=on,wait=off"
    machine = SpelledMachine(parts.kernel.image, parts.image(), parts.accel, spelling=spelling)
    async with booted(parts.qemu, machine) as guest, connected(path) as qmp:
        attachment = await attach(qmp, Wish())
        assert attachment.bus == "pci.0"
        await guest.wait_for(f"[drm] Initialized virtio_gpu 0.1.0 for 0000:{attachment.address}", SECONDS)
        await detach(qmp, None, SECONDS)
        assert reaped(attachment) in (0, 120)
        await guest.check("! ls -d /dev/dri/card*")
