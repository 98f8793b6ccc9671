"""A server of ours for a guest's virtual GPU, and what a test does with both."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from devices.display import Frame
from server.control_client import status
from server.guest.child import Child, started
from server.guest.run import Guest
from server.guest.screen import has_colour_bars, settled
from server.qemu.client import DeviceOptions, vfio_user_pci

PICTURE_SECONDS = 180.0
START_SECONDS = 180.0
POLL_SECONDS = 0.02
MODE = "1024x768"

_CONNECTOR = re.compile(r"^(\d+)\s+\d+\s+connected", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """``vgpud serve`` in a process of its own."""

    process: Child
    device: Path
    control: Path

    def gpu(self, **options: Any) -> DeviceOptions:
        """QEMU's end of it."""
        return vfio_user_pci(self.device, **options)

    async def status(self) -> dict[str, Any]:
        return await status(self.control)

    def descriptors(self) -> int:
        """How many fds the server has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    async def until_idle(self, descriptors: int) -> None:
        """Wait until no client is attached, and as few as ``descriptors`` fds are open again."""
        with trio.fail_after(START_SECONDS):
            while (await self.status())["client"] is not None or self.descriptors() > descriptors:
                await trio.sleep(POLL_SECONDS)


@asynccontextmanager
async def serving(
    folder: Path, *options: str, device: str = "virtio-gpu", name: str = "gpu"
) -> AsyncIterator[Server]:
    """Run a server with ``options``; its sockets are in ``folder``."""
    sockets = folder / f"{name}.sock", folder / f"{name}-control.sock"
    where = ["--socket-path", str(sockets[0]), "--control", str(sockets[1])]
    command = [sys.executable, "-m", "server", "serve", "--device", device, *where, *options]
    async with started(name, command) as process:
        await process.log.wait_for("listening", START_SECONDS)
        yield Server(process, *sockets)


async def show_test_pattern(guest: Guest, mode: str = MODE, number: int = 0, options: str = "") -> None:
    """Have modetest draw on connector ``number`` and hold the picture."""
    listing = await guest.check("modetest -M virtio_gpu -c")
    connector = _CONNECTOR.findall(listing)[number]
    await guest.check(f"sleep 1000 | modetest -M virtio_gpu {options} -s {connector}:{mode} >/tmp/log 2>&1 &")


async def drawn_pattern(guest: Guest, server: Server, mode: str = MODE, scanout: int = 0) -> Frame:
    """Have modetest draw, and return what is then on the virtual screen."""
    await show_test_pattern(guest, mode, scanout)
    return await settled(server.control, has_colour_bars, PICTURE_SECONDS, scanout)
