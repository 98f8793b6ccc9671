"""``vgpud demo``: a stock Linux guest boots on the virtual GPU, and its screen is saved.

The server and QEMU run as processes of their own, as a user would start them.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from devices.display import Frame
from server.control_client import status
from server.control_protocol import ControlError
from server.exit_status import fail
from server.guest.accel import Accel, choose_accel
from server.guest.child import Child, started
from server.guest.errors import GuestError
from server.guest.initramfs import GuestImage
from server.guest.kernel import Kernel, find_kernel
from server.guest.machine import Machine
from server.guest.programs import GuestPrograms, find_programs
from server.guest.progress import Report, to_stderr
from server.guest.qemu import Qemu, find_qemu
from server.guest.run import Guest, launched
from server.guest.screen import has_colour_bars, is_drawn_on, settled
from server.qemu.client import vfio_user_pci
from server.run_async import run_async
from server.screenshot import save_png

_SERVER_SECONDS = 60.0
_BOOT_SECONDS = 300.0
_PICTURE_SECONDS = 120.0
_POLL_SECONDS = 0.02

_DRM = "demo: seconds to the DRM device:"
_NEVER = "never"
_BOOT = f"""\
tries=0
while [ ! -e /dev/dri/card0 ] && [ $tries -lt 1000 ]; do usleep 10000; tries=$((tries + 1)); done
if [ -e /dev/dri/card0 ]; then since=$(cut -d' ' -f1 /proc/uptime); else since={_NEVER}; fi
echo "{_DRM} $since" >/dev/console
"""
_GREETING = """\
. /sys/class/drm/card0/device/uevent
printf '\\033[?25l\\n  %s\\n  virtio_gpu drives %s at %s\\n\\n' "$(uname -srm)" "$PCI_ID" "$PCI_SLOT_NAME" >/dev/tty0
"""
_CONNECTED = re.compile(r"^(?P<connector>\d+)\s+\d+\s+connected\s", re.MULTILINE)
_MODE = re.compile(r"^\s*#0\s+(?P<mode>\S+)\s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DemoParts:
    """Everything that the demo's guest is made of."""

    qemu: Qemu
    kernel: Kernel
    programs: GuestPrograms
    accel: Accel


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo saw. Times in seconds: since QEMU was started, and by the guest's own clock."""

    pattern: Path
    console: Path
    size: tuple[int, int]
    drm_device: float
    drm_device_uptime: float
    status: Mapping[str, Any]


def demo_command(output: Path) -> int:
    """Run the demo from the command line; returns the exit status. Says what went wrong in one line."""
    began = time.monotonic()
    # What is to be cleaned up at Ctrl-C is to be cleaned up at SIGTERM as well.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        result = run_async(run_demo, find_parts(to_stderr), output, to_stderr)
    except (GuestError, ControlError, OSError) as error:
        for line in getattr(error, "log", ()):
            sys.stderr.write(f"  | {line}\n")
        return fail(error)
    sys.stdout.write("\n".join(_summary(result, time.monotonic() - began)) + "\n")
    return 0


def find_parts(report: Report) -> DemoParts:
    """Find or download what the guest is made of. Raises :class:`GuestError`."""
    qemu, kernel = find_qemu(report), find_kernel(report)
    programs = find_programs(report)
    return DemoParts(qemu, kernel, programs, choose_accel(qemu, kernel, report))


async def run_demo(parts: DemoParts, output: Path, report: Report) -> DemoResult:
    """Boot the guest on the virtual GPU, and save the console and then the test pattern next to ``output``.

    ``FILE.png`` gets the pattern, ``FILE-console.png`` the console. Nothing is left running, also when this
    is cancelled. Raises :class:`GuestError`, ControlError, OSError.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    console_file = output.with_name(f"{output.stem}-console{output.suffix or '.png'}")
    report(f"QEMU {parts.qemu.release}, Linux {parts.kernel.release}, {parts.accel.name}")
    with tempfile.TemporaryDirectory(prefix="vgpud-demo-") as name:
        folder = Path(name)
        image = GuestImage(parts.kernel, parts.programs, boot=_BOOT).write(folder / "initramfs")
        device, control = folder / "device.sock", folder / "control.sock"
        machine = Machine(parts.kernel.image, image, parts.accel, (vfio_user_pci(device),))
        async with _server(device, control), launched(parts.qemu, machine) as guest:
            report("booting the guest")
            drm_device, uptime = await _drm_device(guest)
            report(f"the guest's driver has bound the virtual GPU after {drm_device:.1f} s")
            await guest.check(_GREETING)
            console = await settled(control, is_drawn_on, _PICTURE_SECONDS)
            save_png(console, console_file)
            report("saved the guest's console; asking modetest for its test pattern")
            pattern = await _test_pattern(guest, control)
            save_png(pattern, output)
            counters = await status(control)
    size = (pattern.buffer.width, pattern.buffer.height)
    return DemoResult(output, console_file, size, drm_device, uptime, counters)


@asynccontextmanager
async def _server(device: Path, control: Path) -> AsyncIterator[None]:
    serve = [sys.executable, "-m", "server", "serve", "--log-level", "warning"]
    where = ["--socket-path", str(device), "--control", str(control)]
    async with started("the server", [*serve, *where]) as server:
        try:
            await _until_listening(server, device, control)
            yield
        except GuestError as error:
            said = (*server.log.tail, *error.log)
            if server.returncode is not None:
                ended = f"the server ended with status {server.returncode}"
                raise GuestError(f"{ended}: {server.log.last_words}", said) from error
            raise GuestError(str(error), said) from error


async def _until_listening(server: Child, *sockets: Path) -> None:
    with trio.move_on_after(_SERVER_SECONDS):
        while not _all_exist(sockets):
            if server.log.ended:
                await server.wait()
                raise GuestError("the server did not start", server.log.tail)
            await trio.sleep(_POLL_SECONDS)
        return
    raise GuestError(f"the server does not listen after {_SERVER_SECONDS:.0f} s", server.log.tail)


def _all_exist(paths: tuple[Path, ...]) -> bool:
    return all(path.exists() for path in paths)


async def _drm_device(guest: Guest) -> tuple[float, float]:
    began = trio.current_time()
    _, line = await guest.wait_for(_DRM, _BOOT_SECONDS)
    seconds, since_kernel = trio.current_time() - began, line.split()[-1]
    if since_kernel == _NEVER:
        raise GuestError("the guest's driver did not bind the virtual GPU", guest.console.tail)
    await guest.ready()
    return seconds, float(since_kernel)


async def _test_pattern(guest: Guest, control: Path) -> Frame:
    listing = await guest.check("modetest -M virtio_gpu -c")
    connector, mode = _CONNECTED.search(listing), _MODE.search(listing)
    if connector is None or mode is None:
        raise GuestError("modetest sees no connected screen", tuple(listing.splitlines()))
    # modetest holds the picture until it can read a key
    show = f"modetest -M virtio_gpu -s {connector['connector']}:{mode['mode']}"
    await guest.check(f"sleep 1000 | {show} >/tmp/modetest.log 2>&1 &")
    try:
        return await settled(control, has_colour_bars, _PICTURE_SECONDS)
    except GuestError as error:
        said = await guest.run("cat /tmp/modetest.log")
        raise GuestError(f"modetest's pattern: {error}", tuple(said.output.splitlines())) from error


def _summary(result: DemoResult, seconds: float) -> list[str]:
    width, height = result.size
    commands = result.status["model"]["commands"]
    client = result.status["client"] or {"memory": {"pinned_pages": 0}}
    return [
        f"pictures         {result.pattern} ({width}x{height}), {result.console}",
        (
            f"DRM device       {result.drm_device:.1f} s after QEMU's start, "
            f"{result.drm_device_uptime:.1f} s after the kernel's"
        ),
        f"commands served  {sum(commands.values())} ({_most_frequent(commands)})",
        f"pages pinned     {client['memory']['pinned_pages']}",
        f"all in all       {seconds:.1f} s",
    ]


def _most_frequent(commands: Mapping[str, int]) -> str:
    ordered = sorted(commands.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in ordered)
