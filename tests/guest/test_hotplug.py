"""A virtual GPU that comes to a running guest, and goes again: a real QEMU, a stock guest and its driver."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from server.guest.child import started
from server.guest.run import Guest, launched
from server.guest.screen import has_colour_bars, settled
from server.hotplug.attach import Attachment, Wish, attach
from server.hotplug.detach import detach
from server.hotplug.errors import HotplugError
from server.hotplug.guest_devices import has_devices
from server.hotplug.process import DetachedProcess
from server.hotplug.qmp import CommandFailed, Qmp, connected
from server.hotplug.server_process import ServerOptions, find_server
from server.instances.state import listening_paths
from tests.fds import open_fds
from tests.guest.support import GuestParts
from tests.guest.virtual_gpu import PICTURE_SECONDS, POLL_SECONDS, serving, show_test_pattern
from tests.server.running import TRANSPORTS

pytestmark = pytest.mark.guest

PORTS = ("-device", "pcie-root-port,id=port1,chassis=1", "-device", "pcie-root-port,id=port2,chassis=2")
ADDRESS = "01:00.0"
SECONDS = 120.0
ROUNDS = 50
BY_COMMAND = 5
"""One round in so many is done by the commands, which take longer than the functions behind them."""
BOUND = f"[drm] Initialized virtio_gpu 0.1.0 for 0000:{ADDRESS}"
"""What the stock driver says when it has taken the device."""
NOTHING_THERE = f"! ls -d /sys/bus/pci/devices/0000:{ADDRESS} /dev/dri/card*"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers have their sockets, for tests to see that nothing stays there."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


async def vgpud(*arguments: object) -> str:
    """Run a command that must succeed; returns what it printed."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


class Kept(NamedTuple):
    """What a process has open, and its memory in KiB that is no file's: all but the guest's."""

    descriptors: int
    mappings: int
    anonymous: int


def kept(pid: int) -> Kept:
    folder = Path(f"/proc/{pid}")
    anonymous = kibibytes(folder.joinpath("status").read_text(), "RssAnon")
    return Kept(len(entries(folder / "fd")), len(folder.joinpath("maps").read_text().splitlines()), anonymous)


def kibibytes(text: str, name: str) -> int:
    """The value of a line as /proc has them."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert match
    return int(match[1])


async def guests_memory(guest: Guest) -> str:
    """Its /proc/meminfo, without what it could give back at any time."""
    return await guest.check("echo 3 >/proc/sys/vm/drop_caches; cat /proc/meminfo")


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def reaped(attachment: Attachment) -> int:
    """The exit status of a server that has ended and that this process started."""
    assert attachment.server is not None
    pid, how = os.waitpid(attachment.server, os.WNOHANG)
    assert pid == attachment.server
    return os.waitstatus_to_exitcode(how)


async def test_a_gpu_comes_and_goes_and_comes_again_with_the_other_transport(
    parts: GuestParts, tmp_path: Path, temporary: Path
) -> None:
    qmp = tmp_path / "qmp.sock"
    async with parts.boot(qmp=qmp, extra=PORTS) as guest:
        for transport in ("native", "libvfio-user"):
            since = len(guest.console.lines)
            control, log = tmp_path / f"{transport}.sock", tmp_path / f"{transport}.log"
            options = ("--transport", transport, "--control", control, "--log", log)
            model = "virtio-gpu,width=1024,height=768"
            attached = json.loads(await vgpud("attach", "--qmp", qmp, "--json", "--device", model, *options))
            with DetachedProcess(attached["server"]) as server:
                assert attached == {"id": "vgpud0", "bus": "port1", "address": ADDRESS, "server": server.pid}
                assert entries(temporary) == []
                await guest.wait_for(BOUND, SECONDS, since)
                await show_test_pattern(guest)
                await settled(control, has_colour_bars, PICTURE_SECONDS)
                assert await vgpud("detach", "--qmp", qmp) == "vgpud0: unplugged\n"
                assert await server.ended(SECONDS)
            assert f"transport={transport}" in log.read_text()
            await guest.check(NOTHING_THERE)
            async with connected(qmp) as monitor:
                assert await monitor.execute("query-named-block-nodes") == []  # it may be migrated again
        await server_of_ones_own(guest, qmp, tmp_path)


async def server_of_ones_own(guest: Guest, qmp: Path, folder: Path) -> None:
    """A server that was started by hand, with msix=off: its device is plugged in, and out again."""
    since = len(guest.console.lines)
    device = "virtio-gpu,width=1024,height=768,msix=off"
    async with serving(folder, device=device, name="own") as server:
        attached = json.loads(await vgpud("attach", "--qmp", qmp, "--json", "--socket-path", server.device))
        assert attached == {"id": "vgpud0", "bus": "port1", "address": ADDRESS, "server": None}
        await guest.wait_for(BOUND, SECONDS, since)
        await show_test_pattern(guest)
        await settled(server.control, has_colour_bars, PICTURE_SECONDS)
        assert await vgpud("detach", "--qmp", qmp) == "vgpud0: unplugged\n"
        assert (await server.status())["client"] is None
        await guest.check(NOTHING_THERE)


async def test_fifty_rounds_leave_nothing_behind(parts: GuestParts, tmp_path: Path, temporary: Path) -> None:
    path, commands = tmp_path / "qmp.sock", tmp_path / "commands.sock"
    extra = (*PORTS, "-qmp", f"unix:{commands},server=on,wait=off")
    async with parts.boot(qmp=path, extra=extra) as guest, connected(path) as qmp:
        await plug_and_unplug_by_command(commands, guest, "native")
        for transport in TRANSPORTS:
            await plug_and_unplug(qmp, guest, transport)  # what QEMU and the guest allocate once
        guests, ours, qemus = await guests_memory(guest), open_fds(), kept(guest.qemu.pid)
        for number, transport in enumerate(islice(cycle(TRANSPORTS), ROUNDS)):
            if number % BY_COMMAND:
                await plug_and_unplug(qmp, guest, transport)
            else:
                await plug_and_unplug_by_command(commands, guest, transport)
        guests_now, now = await guests_memory(guest), kept(guest.qemu.pid)
        assert (open_fds(), now.descriptors) == (ours, qemus.descriptors)
        # What follows is other people's: malloc, an emulator's cache of code, a kernel's. Once, QEMU takes 2 MiB more.
        assert now.mappings < qemus.mappings + ROUNDS // 5
        assert now.anonymous < qemus.anonymous + 100 * ROUNDS
        assert kibibytes(guests_now, "Slab") < kibibytes(guests, "Slab") + 4 * ROUNDS
        # a screen has 4 MiB, and one may still be on its way back
        assert kibibytes(guests_now, "MemAvailable") > kibibytes(guests, "MemAvailable") - 320 * ROUNDS
        assert entries(temporary) == []
        await guest.check(NOTHING_THERE)


async def plug_and_unplug(qmp: Qmp, guest: Guest, transport: str) -> None:
    since = len(guest.console.lines)
    attachment = await attach(qmp, Wish(server=ServerOptions(transport=transport)))
    await guest.wait_for(BOUND, SECONDS, since)
    await detach(qmp, attachment.id, SECONDS)
    assert reaped(attachment) in (0, 120)  # 120: nobody read its last words


async def plug_and_unplug_by_command(qmp: Path, guest: Guest, transport: str) -> None:
    since = len(guest.console.lines)
    attached = json.loads(await vgpud("attach", "--qmp", qmp, "--json", "--transport", transport))
    with DetachedProcess(attached["server"]) as server:
        await guest.wait_for(BOUND, SECONDS, since)
        assert json.loads(await vgpud("detach", "--qmp", qmp, "--json")) == {"id": attached["id"]}
        assert await server.ended(0)


async def test_nothing_is_left_whoever_is_killed_and_a_reboot_is_no_end(
    parts: GuestParts, tmp_path: Path, temporary: Path
) -> None:
    path = tmp_path / "qmp.sock"
    async with parts.boot(qmp=path, extra=PORTS) as guest:
        await killed_attach(path, temporary)
        async with connected(path) as qmp:
            assert await has_devices(qmp) is False
            first = await attach(qmp, Wish())
            await guest.wait_for(BOUND, SECONDS)
            since = len(guest.console.lines)
            await qmp.execute("set-action", {"reboot": "reset"})
            await qmp.execute("system_reset")
            await guest.wait_for(BOUND, since=since)
            second = await attach(qmp, Wish(server=ServerOptions(log=tmp_path / "log")))
            await guest.wait_for("for 0000:02:00.0", SECONDS, since)
            assert first.server is not None
            os.kill(first.server, signal.SIGKILL)
            with DetachedProcess(first.server) as process:
                await process.ended(SECONDS)
            assert reaped(first) == -signal.SIGKILL
            # A guest that is idle hangs. With one that is not, QEMU aborts, and may have done so by now.
            with pytest.raises(HotplugError, match=r"the server of vgpud0 has ended|QEMU hung up"):
                await detach(qmp, first.id, within=0.5)
        guest.qemu.send_signal(signal.SIGKILL)
        assert second.server is not None
        with DetachedProcess(second.server) as process:
            assert await process.ended(SECONDS)
        assert reaped(second) == 0
    assert entries(temporary) == []


async def killed_attach(qmp: Path, temporary: Path) -> None:
    """An attach that is killed while its server starts, which ends then."""
    command = [sys.executable, "-m", "server", "attach", "--qmp", str(qmp)]
    async with started("attach", command) as child:
        with trio.fail_after(SECONDS):
            while (server := find_server("vgpud0", qmp)) is None:
                await trio.sleep(POLL_SECONDS)
            child.send_signal(signal.SIGKILL)
        with server:
            try:
                assert await server.ended(SECONDS)
            finally:
                await server.end(SECONDS)
    assert entries(temporary) == []


@asynccontextmanager
async def before_boot(
    parts: GuestParts, folder: Path, ports: tuple[str, ...] = PORTS, *, shared_memory: bool = True
) -> AsyncIterator[Qmp]:
    """Talk to a QEMU whose guest does not run yet."""
    path = folder / "qmp.sock"
    machine = parts.machine(qmp=path, extra=("-S", *ports), shared_memory=shared_memory)
    async with launched(parts.qemu, machine) as guest:
        with trio.fail_after(SECONDS):
            while str(path) not in listening_paths():
                assert not guest.qemu.log.ended, guest.qemu.log.tail
                await trio.sleep(POLL_SECONDS)
        async with connected(path) as qmp:
            yield qmp


async def test_a_guest_with_private_memory_gets_no_device(parts: GuestParts, tmp_path: Path) -> None:
    async with before_boot(parts, tmp_path, shared_memory=False) as qmp:
        with pytest.raises(
            HotplugError, match="the guest's memory memory is private: start QEMU with share=on"
        ):
            await attach(qmp, Wish())


@pytest.mark.parametrize("device", ["nvdimm,memdev=more", "virtio-pmem-pci,memdev=more"])
async def test_a_guest_with_a_file_of_its_own_among_its_memory_gets_no_device(
    parts: GuestParts, tmp_path: Path, device: str
) -> None:
    file = f"memory-backend-file,id=more,size=128M,mem-path={tmp_path}/file,share=off"
    memory = ("-machine", "nvdimm=on", "-m", "slots=2,maxmem=2G", "-object", file, "-device", device)
    async with before_boot(parts, tmp_path, ports=(*PORTS, *memory)) as qmp:
        with pytest.raises(HotplugError, match="memory more is private: start QEMU with share=on"):
            await attach(qmp, Wish())


async def test_a_guest_that_has_to_be_migratable_gets_no_device(parts: GuestParts, tmp_path: Path) -> None:
    async with before_boot(parts, tmp_path, ports=(*PORTS, "-only-migratable")) as qmp:
        with pytest.raises(HotplugError, match="start QEMU without -only-migratable"):
            await attach(qmp, Wish())
        assert await has_devices(qmp) is False


async def test_a_guest_without_a_free_port_gets_no_device(parts: GuestParts, tmp_path: Path) -> None:
    async with before_boot(parts, tmp_path, ports=()) as qmp:
        with pytest.raises(
            HotplugError, match="no free hot-pluggable port: start QEMU with -device pcie-root-port"
        ):
            await attach(qmp, Wish())
        with pytest.raises(
            HotplugError,
            match=r"Bus 'pcie.0' does not support hotplugging: start QEMU with -device pcie-root-port",
        ):
            await attach(qmp, Wish(bus="pcie.0"))


async def test_a_guest_that_does_not_run_has_no_address_for_a_device_and_cannot_let_it_go(
    parts: GuestParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.hotplug.attach.NUMBERING_SECONDS", 0.1)
    async with before_boot(parts, tmp_path) as qmp:
        attachment = await attach(qmp, Wish(server=ServerOptions(log=tmp_path / "log")))
        assert (attachment.bus, attachment.address) == ("port1", None)
        with pytest.raises(CommandFailed, match="vgpud-gpu-cannot-migrate"):
            await qmp.execute("migrate", {"uri": f"file:{tmp_path}/state"})
        with pytest.raises(
            HotplugError, match="cannot let go of vgpud0 while it is prelaunch: resume it first"
        ):
            await detach(qmp, None, within=0.1)
        assert attachment.server is not None
        process = DetachedProcess(attachment.server)
    with process:
        assert await process.ended(SECONDS)  # as QEMU has
    assert reaped(attachment) == 0


async def test_a_device_whose_unplugging_would_end_qemu_is_not_unplugged(
    parts: GuestParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.hotplug.attach.NUMBERING_SECONDS", 0.1)
    async with (
        serving(tmp_path) as server,
        before_boot(parts, tmp_path) as qmp,
    ):
        warnings: list[str] = []
        await attach(qmp, Wish(socket_path=server.device), warnings.append)
        assert ["vgpud0 has MSI-X" in warning for warning in warnings] == [True]
        with pytest.raises(HotplugError, match=r"another client has the server at .*: detach that first"):
            await attach(qmp, Wish(socket_path=server.device))
        with pytest.raises(HotplugError, match=r"vgpud0 has MSI-X, and QEMU up to 11.1 aborts .*,msix=off"):
            await detach(qmp, None, SECONDS)
        assert await qmp.execute("query-status") == {"status": "prelaunch", "running": False}
