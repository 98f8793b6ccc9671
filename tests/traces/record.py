"""Records the traces that ship with the tests anew: ``python -m tests.traces.record FOLDER``.

Real guests under QEMU, with a stock kernel and its virtio-gpu driver; small screens make small files.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from server.guest.run import Guest
from tests.guest.support import GuestParts, find_parts
from tests.guest.virtual_gpu import Server, drawn_pattern, serving

MODE = "640x480"
DEVICE = "virtio-gpu,width=640,height=480"


async def _nothing(_guest: Guest, _server: Server) -> None:
    """Booting is all."""


async def _draw(guest: Guest, server: Server) -> None:
    await drawn_pattern(guest, server, MODE)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a trace is of: a machine with a device, and what is done in it."""

    act: Callable[[Guest, Server], Awaitable[None]]
    device: str = DEVICE
    iommu: bool = False


SCENES = {
    "boot": Scene(_nothing),
    "modetest": Scene(_draw),
    "modetest-blob": Scene(_draw, f"{DEVICE},blob=on"),
    "viommu": Scene(_nothing, iommu=True),
}


async def record(parts: GuestParts, scene: Scene, trace: Path) -> None:
    """Play ``scene``, and record it."""
    with tempfile.TemporaryDirectory() as name:
        options = ("--trace", str(trace), "--trace-limit", "none")
        async with (
            serving(Path(name), *options, device=scene.device) as server,
            parts.boot(server.gpu(), iommu=scene.iommu) as guest,
        ):
            await scene.act(guest, server)


async def main(folder: Path) -> None:
    """Record all."""
    with tempfile.TemporaryDirectory() as name:
        parts = find_parts(Path(name))
        for scene, what in SCENES.items():
            await record(parts, what, folder / f"{scene}.pcapng")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
