"""The pieces that boot guests, proved with QEMU's own virtio-gpu in place of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from server.guest.errors import GuestError
from server.guest.machine import own_virtio_gpu
from server.guest.run import launched
from server.qemu.client import vfio_user_pci
from tests.guest.support import GuestParts

pytestmark = pytest.mark.guest


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def test_a_stock_guest_boots_binds_its_driver_and_runs_commands(parts: GuestParts) -> None:
    async with parts.boot(own_virtio_gpu()) as guest:
        pid = guest.qemu.pid
        assert await guest.check("cat /sys/class/drm/card0/device/vendor") == "0x1af4"
        connectors = await guest.check("modetest -M virtio_gpu -c")
        assert "Virtual-1" in connectors
        assert await guest.run("printf 'two\\nlines'; exit 3") == (3, "two\nlines")
        with pytest.raises(GuestError, match="failed: no such thing"):
            await guest.check("echo no such thing; false")
        with pytest.raises(GuestError, match="within 0 s"):
            await guest.wait_for("a line that never comes", within=0.1)
    assert not is_running(pid)


async def test_a_guest_that_powers_off_ends_its_commands_with_an_error(parts: GuestParts) -> None:
    async with parts.boot(append="console=ttyS0 panic=-1") as guest:
        with pytest.raises(GuestError, match="ended"):
            await guest.run("poweroff -f; sleep 100")
        assert await guest.qemu.wait() == 0


async def test_a_device_that_qemu_cannot_attach_is_a_one_line_error(
    parts: GuestParts, tmp_path: Path
) -> None:
    nobody = vfio_user_pci(tmp_path / "nobody-listens.sock")
    with pytest.raises(GuestError, match=r"QEMU ended: .*nobody-listens\.sock") as caught:
        async with parts.boot(nobody):
            pass
    assert "\n" not in str(caught.value)
    assert caught.value.log


async def test_a_cancelled_guest_leaves_no_process(parts: GuestParts) -> None:
    pids = []
    with trio.CancelScope() as scope:
        async with launched(parts.qemu, parts.machine()) as guest:
            pids.append(guest.qemu.pid)
            scope.cancel()
            await guest.ready()
    assert not any(is_running(pid) for pid in pids)
    assert pids


async def test_a_guest_leaves_no_descriptors_behind(parts: GuestParts) -> None:
    before = open_descriptors()
    async with launched(parts.qemu, parts.machine()) as guest:
        await guest.wait_for("Linux version")
    assert open_descriptors() == before
