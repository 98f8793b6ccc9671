"""Plugging in: what QEMU is asked for, and that nothing is left where it does not work out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from server.hotplug.attach import NUMBERING_SECONDS, Attachment, Wish, attach
from server.hotplug.errors import HotplugError
from server.hotplug.qmp import QmpError
from server.socket_path import listen_at
from tests.server.hotplug.fake_qemu import (
    HANG_UP,
    Device,
    FakeQemu,
    refuses,
    returns,
    talking_to,
)


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    """Where a server listens, which none of these QEMUs connects to."""
    path = tmp_path / "device.sock"
    with listen_at(path):
        yield path


async def attach_to(qemu: FakeQemu, folder: Path, wish: Wish) -> Attachment:
    async with talking_to(qemu, folder) as qmp:
        return await attach(qmp, wish)


async def test_a_device_is_plugged_into_the_first_free_port(tmp_path: Path, socket_path: Path) -> None:
    qemu = FakeQemu()
    attachment = await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert attachment == Attachment("vgpud0", "rp0", "01:00.0", None)
    assert ("device_add", {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(socket_path)},
        "id": "vgpud0",
        "bus": "rp0",
    }) in qemu.executed  # fmt: skip
    assert qemu.devices["vgpud0"] == Device("vfio-user-pci", "rp0")


async def test_a_device_has_the_id_and_the_bus_that_were_asked_for(tmp_path: Path, socket_path: Path) -> None:
    wish = Wish("gpu", "rp1", socket_path)
    assert await attach_to(FakeQemu(), tmp_path, wish) == Attachment("gpu", "rp1", "02:00.0", None)


async def test_a_relative_path_is_one_of_ours_and_not_of_qemus(
    tmp_path: Path, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    qemu = FakeQemu()
    await attach_to(qemu, tmp_path, Wish(socket_path=Path(socket_path.name)))
    assert qemu.executed[-2][1]["socket"]["path"] == str(socket_path)


@pytest.mark.parametrize(
    ("qemu", "says"),
    [
        (FakeQemu(types={}), "has no vfio-user-pci"),
        (FakeQemu(backends={"mem": (1 << 30, False)}), "the guest's memory mem is private"),
        (FakeQemu(devices={}), "no free hot-pluggable port"),
    ],
    ids=["no client", "private memory", "no port"],
)
async def test_a_guest_that_cannot_have_a_device_is_not_touched(
    tmp_path: Path, socket_path: Path, qemu: FakeQemu, says: str
) -> None:
    with pytest.raises(HotplugError, match=says):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert "device_add" not in qemu.commands()


async def test_a_server_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(
        HotplugError, match="no server listens there: start one with vgpud serve --socket-path"
    ):
        await attach_to(FakeQemu(), tmp_path, Wish(socket_path=tmp_path / "none"))


@pytest.mark.parametrize(
    "description", ["Bus 'pcie.9' not found", "Bus 'pcie.9' does not support hotplugging"]
)
async def test_a_bus_that_qemu_cannot_plug_is_explained(
    tmp_path: Path, socket_path: Path, description: str
) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [refuses(description)]})
    with pytest.raises(
        HotplugError, match=f"--bus pcie.9: {description}: start QEMU with -device pcie-root-port"
    ):
        await attach_to(qemu, tmp_path, Wish(bus="pcie.9", socket_path=socket_path))


async def test_what_qemu_says_against_a_device_is_passed_on(tmp_path: Path, socket_path: Path) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [refuses("Failed to connect: Permission denied")]})
    with pytest.raises(HotplugError, match="QEMU refused device_add: Failed to connect: Permission denied"):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert "device_del" not in qemu.commands()


async def test_a_guest_that_has_not_numbered_its_buses_gets_a_device_without_an_address(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    attachment = await attach_to(FakeQemu(is_numbered=False), tmp_path, Wish(socket_path=socket_path))
    assert attachment == Attachment("vgpud0", "rp0", None, None)
    assert trio.current_time() == pytest.approx(NUMBERING_SECONDS)


async def test_an_address_that_comes_late_is_waited_for(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(is_numbered=False)

    async def number() -> None:
        await trio.sleep(1)
        qemu.is_numbered = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(number)
        attachment = await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert attachment.address == "01:00.0"
    assert trio.current_time() < 2


async def test_a_device_whose_address_makes_no_sense_is_taken_back(tmp_path: Path, socket_path: Path) -> None:
    qemu = FakeQemu(says={"query-pci": lambda _: [returns(5)]})
    with pytest.raises(HotplugError, match="query-pci is no array"):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert qemu.commands()[-1] == "device_del"
    assert "vgpud0" not in qemu.devices


async def test_a_device_is_taken_back_when_the_user_gives_up_while_qemu_adds_it(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(says={"device_add": lambda arguments: [*FakeQemu.device_add(qemu, arguments)[1:]]})
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(5) as scope:  # QEMU has added it by then, and has not said so
            await attach(qmp, Wish(socket_path=socket_path))
        assert scope.cancelled_caught
    assert qemu.commands()[-1] == "device_del"
    assert "vgpud0" not in qemu.devices


async def test_a_device_that_the_guest_keeps_is_not_waited_for_without_end(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(is_numbered=False, says={"device_del": lambda _: [returns({})]})
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(1):
            await attach(qmp, Wish(socket_path=socket_path))
    assert "vgpud0" in qemu.devices
    assert trio.current_time() < 30


async def test_a_device_that_qemu_would_not_survive_the_removal_of_stays(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(is_numbered=False)

    def add(arguments: dict[str, str]) -> list[dict[str, object] | bytes]:
        qemu.devices[arguments["id"]] = Device("vfio-user-pci", arguments["bus"], ("msix-table[0]",))
        return [returns({})]

    qemu.says["device_add"] = add
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(1):
            await attach(qmp, Wish(socket_path=socket_path))
    assert "device_del" not in qemu.commands()


async def test_a_qemu_that_ends_is_told_from_one_that_refuses(tmp_path: Path, socket_path: Path) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [HANG_UP]})
    with pytest.raises(QmpError, match="QEMU hung up"):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
