"""Records the traces that ship with the tests anew: ``python -m tests.traces.record FOLDER [NAME ...]``.

Real guests under QEMU, with a stock kernel and its virtio-gpu driver; small screens make small files. And one with
libvfio-user's sample of a GPIO card (``make libvfio-user``), through the proxy.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from server.guest.run import Guest
from server.qemu.client import vfio_user_pci
from tests.guest.support import GuestParts, find_parts
from tests.guest.test_trace_proxy import GPIO_SLOT, gpio_server, recording, use_gpio
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
GPIO = "gpio"


async def record(parts: GuestParts, scene: Scene, trace: Path) -> None:
    """Play ``scene``, and record it."""
    with tempfile.TemporaryDirectory() as name:
        options = ("--trace", str(trace), "--trace-limit", "none")
        async with (
            serving(Path(name), *options, device=scene.device) as server,
            parts.boot(server.gpu(), iommu=scene.iommu) as guest,
        ):
            await scene.act(guest, server)


async def record_gpio(parts: GuestParts, trace: Path) -> None:
    """Record what a guest does with the GPIO card, with ``--full``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with gpio_server(folder) as server, recording(folder, server, "--full") as proxy:
            async with parts.boot(vfio_user_pci(proxy.path, addr=hex(GPIO_SLOT))) as guest:
                await use_gpio(guest)
            await proxy.process.wait()  # QEMU is gone
        shutil.move(proxy.trace, trace)


async def main(folder: Path, names: Sequence[str]) -> None:
    """Record those of ``names``, or all."""
    with tempfile.TemporaryDirectory() as name:
        parts = find_parts(Path(name))
        for scene in names or (*SCENES, GPIO):
            trace = folder / f"{scene}.pcapng"
            if scene == GPIO:
                await record_gpio(parts, trace)
            else:
                await record(parts, SCENES[scene], trace)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2:])
