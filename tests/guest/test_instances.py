"""Three guests at once, each with an instance of its own, started and stopped with the commands that users have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
import trio

from devices.display import Frame
from server.guest.screen import has_colour_bars, settled
from server.qemu.client import vfio_user_pci
from tests.guest.support import GuestParts
from tests.guest.virtual_gpu import show_test_pattern

pytestmark = pytest.mark.guest

UUIDS = tuple(UUID(int=(0x4000 << 64) + (0x8000 << 48) + number) for number in (1, 2, 3))
TRANSPORTS = ("native", "libvfio-user", "native")
MODES = ("640x480", "800x600", "1024x768")
WITHIN_SECONDS = 300.0


class Vgpud:
    """The program, with folders of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.runtime = folder / "run"
        self._folders = ["--config-dir", str(folder / "config"), "--runtime-dir", str(self.runtime)]

    async def __call__(self, *words: str) -> str:
        command = [sys.executable, "-m", "server", *words, *self._folders]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout.decode()


@pytest.fixture
def vgpud() -> Iterator[Vgpud]:
    with TemporaryDirectory() as name:  # a socket's path has 107 bytes at most
        yield Vgpud(Path(name))


async def state_of(vgpud: Vgpud, uuid: UUID) -> str:
    listed = {one["uuid"]: one for one in json.loads(await vgpud("list", "--json"))}
    state: str = listed[str(uuid)]["state"]
    return state


async def test_three_guests_draw_at_once_each_on_its_own_instance(parts: GuestParts, vgpud: Vgpud) -> None:
    frames: dict[UUID, Frame] = {}

    async def draw(uuid: UUID, transport: str, mode: str) -> None:
        await vgpud("define", "--uuid", str(uuid), "--type", "vgpud-virtio-1", "--transport", transport)
        socket = Path((await vgpud("start", "--manager", "direct", str(uuid))).strip())
        async with parts.boot(vfio_user_pci(socket), memory=256) as guest:
            await show_test_pattern(guest, mode)
            control = vgpud.runtime / str(uuid) / "control.sock"
            frames[uuid] = await settled(control, has_colour_bars, WITHIN_SECONDS)
            with trio.fail_after(WITHIN_SECONDS):
                while (state := await state_of(vgpud, uuid)) == "silent":  # so busy are three guests
                    pass
            assert state == "running"

    async with trio.open_nursery() as nursery:
        for uuid, transport, mode in zip(UUIDS, TRANSPORTS, MODES, strict=True):
            nursery.start_soon(draw, uuid, transport, mode)
    shown = [f"{frames[uuid].buffer.width}x{frames[uuid].buffer.height}" for uuid in UUIDS]
    assert tuple(shown) == MODES
    for uuid in UUIDS:
        await vgpud("stop", "--manager", "direct", "--force", str(uuid))
        await vgpud("undefine", str(uuid))
    assert json.loads(await vgpud("list", "--json")) == []
    assert list(vgpud.runtime.glob("*.sock")) == []
