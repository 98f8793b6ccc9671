"""The Bochs display in daily use: run, recorded, replayed; plugged into a running guest, and out again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from devices.models import MODELS
from devices.registry import create_device
from server.guest.qemu import Qemu
from server.guest.run import Guest, booted
from server.guest.screen import has_colour_bars, settled
from server.hotplug.attach import Wish, attach
from server.hotplug.detach import detach
from server.hotplug.process import DetachedProcess
from server.hotplug.qmp import connected
from server.hotplug.server_process import ServerOptions
from server.screenshot import compose
from server.trace.reader import TraceReader
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.replay import host, replay
from tests.guest.support import GuestParts
from tests.guest.test_bochs_display import DEVICE, show_test_pattern
from tests.guest.test_hotplug import ADDRESS, NOTHING_THERE, SECONDS, reaped, vgpud
from tests.guest.test_run import RUN, SpelledMachine, powers_off, program
from tests.guest.test_virtual_gpu import SMPTE_TOP, top_bars
from tests.guest.virtual_gpu import PICTURE_SECONDS
from tests.server.running import TRANSPORTS

__all__ = ["program"]

pytestmark = pytest.mark.guest


def pixels_of(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.convert("RGB").tobytes()


@asynccontextmanager
async def running_bochs(parts: GuestParts, program: Path, *options: str) -> AsyncIterator[Guest]:
    qemu = Qemu((*RUN, *options, "--", str(program)), parts.qemu.version)
    image = parts.image(load=("bochs",))
    machine = SpelledMachine(parts.kernel.image, image, parts.accel, spelling="-M q35 -m 512")
    async with booted(qemu, machine) as guest:
        yield guest


async def test_it_is_run_and_recorded_and_what_was_recorded_is_replayed(
    parts: GuestParts, program: Path, tmp_path: Path
) -> None:
    control, trace = tmp_path / "control", tmp_path / "trace.pcapng"
    options = ("--gpu", DEVICE, "--control", str(control), "--trace", str(trace))
    async with running_bochs(parts, program, *options) as guest:
        await show_test_pattern(guest)
        pattern = await settled(control, has_colour_bars, PICTURE_SECONDS)
        assert top_bars(pattern) == SMPTE_TOP
        await powers_off(guest)
    for transport in TRANSPORTS.values():
        with TraceReader(trace) as reader:
            session = RecordedSession(reader, 1)
            device = create_device(MODELS, session.info.device)
            try:
                report = await replay(session, host(device, transport()))
            finally:
                device.close()
            assert report.same, report.first
            assert report.sent > 100
    await vgpud("trace", "export", "--frames", tmp_path / "frames", trace)
    *before, last = [pixels_of(file) for file in sorted((tmp_path / "frames").iterdir())]
    assert before  # the console of the kernel
    assert last == compose(pattern).convert("RGB").tobytes()


async def test_it_comes_to_a_running_guest_and_goes_again(parts: GuestParts, tmp_path: Path) -> None:
    qmp = tmp_path / "qmp.sock"
    image = parts.image(load=("bochs",))
    # Firmware leaves a port 2 MiB unless it is told otherwise: the framebuffer has 16.
    port = "pcie-root-port,id=port1,chassis=1,pref32-reserve=32M,mem-reserve=4M"
    small = "pcie-root-port,id=small,chassis=2"
    async with parts.boot(qmp=qmp, extra=("-device", port, "-device", small), initrd=image) as guest:
        for transport in TRANSPORTS:
            control = tmp_path / f"{transport}.sock"
            options = ("--device", DEVICE, "--control", control, "--log", tmp_path / "log")
            attached = json.loads(
                await vgpud("attach", "--qmp", qmp, "--json", *options, "--transport", transport)
            )
            with DetachedProcess(attached["server"]) as server:
                assert attached["address"] == ADDRESS
                await guest.check(
                    "until ls /dev/dri/card0 2>/dev/null; do usleep 20000; done", within=SECONDS
                )
                await show_test_pattern(guest)
                pattern = await settled(control, has_colour_bars, PICTURE_SECONDS)
                assert top_bars(pattern) == SMPTE_TOP
                await vgpud("detach", "--qmp", qmp)
                assert await server.ended(SECONDS)
            await guest.check(NOTHING_THERE)
            await guest.check(
                "killall sleep; while pidof modetest; do usleep 20000; done"
            )  # it has card0 open
        await has_no_room(guest, qmp)


async def has_no_room(guest: Guest, path: Path) -> None:
    """What attach warns of is what the guest says."""
    warnings: list[str] = []
    since = len(guest.console.lines)
    async with connected(path) as qmp:
        attachment = await attach(
            qmp, Wish(bus="small", server=ServerOptions(device=DEVICE)), warnings.append
        )
        (warning,) = warnings
        assert "BAR of 16384 KiB, more than firmware has left small" in warning
        assert "pref32-reserve=32768K,mem-reserve=4M" in warning
        await guest.wait_for("BAR 0 [mem size 0x01000000 pref]: can't assign; no space", SECONDS, since)
        await detach(qmp, attachment.id, SECONDS)
    assert reaped(attachment) in (0, 120)  # 120: nobody read its last words
