"""Unplugging: the guest agrees, refuses, or says nothing."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from server.hotplug.detach import HANG_SECONDS, detach
from server.hotplug.errors import HotplugError
from server.hotplug.process import DetachedProcess
from server.hotplug.qmp import QmpError
from tests.server.hotplug.fake_qemu import (
    HANG_UP,
    Device,
    FakeQemu,
    Json,
    deleted,
    event,
    refuses,
    returns,
    root_port,
    talking_to,
)

SECONDS = 30.0


def with_device(*messages: Json | bytes, **options: Any) -> FakeQemu:
    """A QEMU with one device of ours; ``messages`` is what it says when that is to go, if not that it has gone."""
    devices = {"rp0": root_port(), "vgpud0": Device("vfio-user-pci", "rp0", ("bus master[0]",))}
    says = {"device_del": lambda _: list(messages)} if messages else {}
    return FakeQemu(devices=devices, says=says, **options)


async def detach_from(qemu: FakeQemu, folder: Path, device: str | None = None, **options: Any) -> str:
    async with talking_to(qemu, folder) as qmp:
        return await detach(qmp, device, SECONDS, **options)


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (deleted("vgpud0"), returns({})),
        (returns({}), deleted("vgpud0")),
        (event("DEVICE_DELETED", path="/machine/peripheral/vgpud0/part"), returns({}), deleted("vgpud0")),
        (
            returns({}),
            deleted("other"),
            event("DEVICE_UNPLUG_GUEST_ERROR", device="other"),
            deleted("vgpud0"),
        ),
        (refuses("Device vgpud0 is already in the process of unplug"), deleted("vgpud0")),
    ],
    ids=["usual", "event first", "event last", "of a part", "of another", "asked before"],
)
async def test_a_device_is_gone_when_the_guest_has_let_it_go(
    tmp_path: Path, messages: tuple[Json, ...]
) -> None:
    qemu = with_device(*messages)
    assert await detach_from(qemu, tmp_path) == "vgpud0"
    assert ("device_del", {"id": "vgpud0"}) in qemu.executed


async def test_a_guest_that_refuses_is_said_to(tmp_path: Path) -> None:
    qemu = with_device(returns({}), event("DEVICE_UNPLUG_GUEST_ERROR", device="vgpud0", path="/x"))
    with pytest.raises(HotplugError, match="the guest refuses to let go of vgpud0: end what uses it there"):
        await detach_from(qemu, tmp_path)


async def test_a_guest_that_does_not_answer_is_not_waited_for_without_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    qemu = with_device(returns({}), event("DEVICE_DELETED", path="/machine/peripheral/vgpud0"))
    with pytest.raises(HotplugError, match="has not let go of vgpud0 in 30 s: it may still be booting"):
        await detach_from(qemu, tmp_path)
    assert trio.current_time() == pytest.approx(SECONDS)


@pytest.mark.parametrize("messages", [(returns({}),), (returns({}), HANG_UP)], ids=["hangs", "aborts"])
async def test_a_device_whose_server_was_killed_is_not_waited_for_long(
    tmp_path: Path, autojump_clock: MockClock, messages: tuple[Json | bytes, ...]
) -> None:
    qemu = with_device(*messages)
    qemu.devices["vgpud0"].parts = (r"vfio-user:\x2ftmp\x2fvgpud-a_0z9xyz\x2fdevice.sock BAR 4[0]",)
    with pytest.raises(
        HotplugError,
        match="the server of vgpud0 has ended, so the guest's driver hangs, or QEMU aborts: end QEMU",
    ):
        await detach_from(qemu, tmp_path)
    assert trio.current_time() <= HANG_SECONDS + 0.1


async def test_a_device_whose_server_ends_meanwhile_is_lost_as_well(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "vgpud-a_0z9xyz" / "device.sock"
    command = [sys.executable, "-c", "import signal; signal.pause()", "--once", "--socket-path", str(path)]
    with DetachedProcess.spawn(command, dict(os.environ), sys.stderr.fileno()) as server:

        def kill(_: object) -> list[Json | bytes]:
            os.kill(server.pid, signal.SIGKILL)
            os.waitid(os.P_PIDFD, server.pidfd, os.WEXITED)
            return [returns({})]

        qemu = with_device()
        qemu.says["device_del"] = kill
        name = str(path).replace("/", r"\x2f")
        qemu.devices["vgpud0"].parts = (f"vfio-user:{name} BAR 4[0]",)
        try:
            with pytest.raises(
                HotplugError, match="the server of vgpud0 has ended, so the guest's driver hangs"
            ):
                await detach_from(qemu, tmp_path)
        finally:
            await server.end(0)


async def test_a_device_whose_server_was_started_by_others_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    qemu = with_device(returns({}))
    qemu.devices["vgpud0"].parts = (r"vfio-user:\x2frun\x2fvgpud\x2fdevice.sock BAR 4[0]",)
    with pytest.raises(
        HotplugError, match="or hang because the device's server has ended; the request stands"
    ):
        await detach_from(qemu, tmp_path)
    assert trio.current_time() == pytest.approx(SECONDS)


async def test_a_guest_that_is_paused_is_to_be_resumed(tmp_path: Path, autojump_clock: MockClock) -> None:
    qemu = with_device(returns({}))
    qemu.says["query-status"] = lambda _: [returns({"status": "paused", "running": False})]
    with pytest.raises(HotplugError, match="cannot let go of vgpud0 while it is paused: resume it first"):
        await detach_from(qemu, tmp_path)


async def test_a_device_that_went_without_a_word_is_gone(tmp_path: Path, autojump_clock: MockClock) -> None:
    qemu = with_device()

    def remove(arguments: dict[str, str]) -> list[Json | bytes]:
        del qemu.devices[arguments["id"]]
        return [returns({})]

    qemu.says["device_del"] = remove
    assert await detach_from(qemu, tmp_path) == "vgpud0"


async def test_a_device_that_cannot_be_unplugged_is_qemus_word(tmp_path: Path) -> None:
    qemu = with_device(refuses("Bus 'pcie.0' does not support hotplugging"))
    with pytest.raises(
        HotplugError, match=r"QEMU refused device_del: Bus 'pcie.0' does not support hotplugging"
    ):
        await detach_from(qemu, tmp_path)


async def test_the_end_of_qemu_is_no_consent(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="QEMU hung up"):
        await detach_from(with_device(returns({}), HANG_UP), tmp_path)


async def test_a_device_with_msix_is_unplugged_only_by_force(tmp_path: Path) -> None:
    qemu = with_device()
    qemu.devices["vgpud0"].parts = ("msix-table[0]",)
    says = r"vgpud0 has MSI-X, and QEMU up to 11.1 aborts .*: start its server with --device virtio-gpu,msix=off, .*"
    with pytest.raises(HotplugError, match=f"{says} or use --force"):
        await detach_from(qemu, tmp_path)
    assert "device_del" not in qemu.commands()
    assert await detach_from(qemu, tmp_path, force=True) == "vgpud0"


async def test_what_is_not_ours_is_not_unplugged(tmp_path: Path) -> None:
    qemu = with_device()
    for wanted in ("rp0", "none"):
        with pytest.raises(HotplugError, match=f"--id {wanted}: the guest has no such device; it has vgpud0"):
            await detach_from(qemu, tmp_path, wanted)
    assert "device_del" not in qemu.commands()
