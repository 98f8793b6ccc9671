"""Plugging in: what QEMU is asked for, and that nothing is left where it does not work out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from server.hotplug.attach import NUMBERING_SECONDS, Attachment, Wish, attach
from server.hotplug.detach import detach
from server.hotplug.errors import HotplugError
from server.hotplug.qmp import QmpError
from server.qemu.migration_guard import NODE, guard_node
from server.socket_path import listen_at
from tests.server.hotplug.fake_qemu import (
    HANG_UP,
    Device,
    FakeQemu,
    cancelling_the_last_question,
    refuses,
    returns,
    talking_to,
)

SECONDS = 30.0


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
    added = dict(qemu.executed)["device_add"]
    assert added["socket"]["path"] == str(socket_path)


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
    "description",
    [
        "Bus 'pcie.9' not found",
        "Bus 'pcie.9' does not support hotplugging",
        "PCI: no slot/function available for vfio-user-pci, all in use or reserved",
    ],
)
async def test_a_bus_that_qemu_cannot_plug_is_explained(
    tmp_path: Path, socket_path: Path, description: str
) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [refuses(description)]})
    with pytest.raises(HotplugError, match=f"--bus pcie.9: {description}: choose --bus rp0 or --bus rp1$"):
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
    assert "device_del" in qemu.commands()
    assert "vgpud0" not in qemu.devices


async def test_a_device_is_taken_back_when_the_user_gives_up_while_qemu_adds_it(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(says={"device_add": lambda arguments: [*FakeQemu.device_add(qemu, arguments)[1:]]})
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(5) as scope:  # QEMU has added it by then, and has not said so
            await attach(qmp, Wish(socket_path=socket_path))
        assert scope.cancelled_caught
    assert "device_del" in qemu.commands()
    assert "vgpud0" not in qemu.devices


async def test_a_device_that_the_guest_keeps_is_not_waited_for_without_end(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(is_numbered=False, says={"device_del": lambda _: [returns({})]})
    warned: list[str] = []
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(1):
            await attach(qmp, Wish(socket_path=socket_path), warned.append)
    assert "vgpud0" in qemu.devices
    assert trio.current_time() < 30
    assert warned == ["vgpud0 could not be taken back: it is in the guest, and served"]


async def test_a_device_that_qemu_would_not_survive_the_removal_of_stays(
    tmp_path: Path, socket_path: Path, autojump_clock: MockClock
) -> None:
    qemu = FakeQemu(is_numbered=False)

    def add(arguments: dict[str, str]) -> list[dict[str, object] | bytes]:
        qemu.devices[arguments["id"]] = Device("vfio-user-pci", arguments["bus"], ("msix-table[0]",))
        return [returns({})]

    qemu.says["device_add"] = add
    warned: list[str] = []
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(1):
            await attach(qmp, Wish(socket_path=socket_path), warned.append)
    assert "device_del" not in qemu.commands()
    assert warned == ["vgpud0 could not be taken back: it is in the guest, and served"]


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (
            "Failed to connect to '/s': Permission denied",
            "runs as another user, .* put the server's socket where",
        ),
        ("Failed to connect to '/s': No such file or directory", "in a container, where it does not reach"),
        (
            "Failed to connect to '/s': Connection refused",
            "has ended: start one with vgpud serve --socket-path",
        ),
        (
            "vfio /s: version reply: Device or resource busy",
            "leave --socket-path out for a server of its own",
        ),
        ("vfio /s: timed out waiting for reply: Connection timed out", "the --socket-path of vgpud serve?"),
        ("Failed to connect to '/s': Protocol wrong type for socket", "the --socket-path of vgpud serve?"),
    ],
)
async def test_a_server_that_qemu_does_not_reach_is_explained(
    tmp_path: Path, socket_path: Path, description: str, says: str
) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [refuses(description)]})
    with pytest.raises(HotplugError, match=f"^QEMU refused device_add: {description}: .*{says}"):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))


async def test_a_guest_with_a_device_is_kept_from_migrating_until_the_last_is_gone(
    tmp_path: Path, socket_path: Path
) -> None:
    qemu = FakeQemu()
    async with talking_to(qemu, tmp_path) as qmp:
        for _ in range(2):
            await attach(qmp, Wish(socket_path=socket_path))
            assert list(qemu.nodes.values()) == [guard_node()]
        await detach(qmp, "vgpud1", SECONDS)
        assert NODE in qemu.nodes
        qemu.anonymous["device[0]"] = Device("vfio-user-pci")
        await detach(qmp, "vgpud0", SECONDS)
        assert NODE in qemu.nodes
        await attach(qmp, Wish(socket_path=socket_path))
        del qemu.anonymous["device[0]"]
        await detach(qmp, "vgpud0", SECONDS)
        assert qemu.nodes == {}


async def test_a_device_is_there_only_after_what_keeps_the_guest_from_migrating(
    tmp_path: Path, socket_path: Path
) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [refuses("out of order")]})
    with pytest.raises(HotplugError, match="out of order"):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    order = [name for name in qemu.commands() if name.startswith(("device", "blockdev"))]
    assert order == ["blockdev-add", "device_add", "blockdev-del"]
    assert qemu.nodes == {}


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("(--only-migratable)", "start QEMU without -only-migratable"),
        ("(migration/snapshot in progress)", "attach when that has ended"),
    ],
)
async def test_a_guest_that_is_to_migrate_gets_no_device(
    tmp_path: Path, socket_path: Path, reason: str, says: str
) -> None:
    description = f"disallowing migration blocker {reason} for: The vdi format used by node"
    qemu = FakeQemu(says={"blockdev-add": lambda _: [refuses(description)]})
    with pytest.raises(HotplugError, match=says):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert "device_add" not in qemu.commands()


async def test_a_qemu_that_cannot_be_kept_from_migrating_gets_the_device_and_its_user_a_warning(
    tmp_path: Path, socket_path: Path
) -> None:
    reason = "Could not open '/x': Permission denied"
    qemu = FakeQemu(says={"blockdev-add": lambda _: [refuses(reason)]})
    warnings: list[str] = []
    async with talking_to(qemu, tmp_path) as qmp:
        await attach(qmp, Wish(socket_path=socket_path), warnings.append)
    assert "vgpud0" in qemu.devices
    (warning,) = warnings
    assert reason in warning
    assert "do not migrate it" in warning


async def test_whoever_plugs_in_what_cannot_be_unplugged_is_told(tmp_path: Path, socket_path: Path) -> None:
    qemu = FakeQemu()

    def add(arguments: dict[str, str]) -> list[dict[str, object] | bytes]:
        qemu.devices[arguments["id"]] = Device("vfio-user-pci", arguments["bus"], ("msix-table[0]",))
        return [returns({})]

    qemu.says["device_add"] = add
    warnings: list[str] = []
    async with talking_to(qemu, tmp_path) as qmp:
        await attach(qmp, Wish(socket_path=socket_path), warnings.append)
    (warning,) = warnings
    assert "vgpud0 has MSI-X, and cannot be unplugged" in warning
    assert "--device virtio-gpu,msix=off" in warning


async def test_a_qemu_that_ends_is_told_from_one_that_refuses(tmp_path: Path, socket_path: Path) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [HANG_UP]})
    with pytest.raises(QmpError, match="QEMU hung up"):
        await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))


async def test_a_device_is_there_also_where_qemu_does_not_say_what_to_warn_of(
    tmp_path: Path, socket_path: Path
) -> None:
    qemu = FakeQemu()

    def answer(arguments: object) -> list[dict[str, object] | bytes]:
        asked = qemu.commands().count("query-pci")
        return qemu.query_pci(arguments) if asked == 1 else [refuses("out of order")]

    qemu.says["query-pci"] = answer
    attachment = await attach_to(qemu, tmp_path, Wish(socket_path=socket_path))
    assert attachment == Attachment("vgpud0", "rp0", "01:00.0", None)
    assert qemu.commands().count("query-pci") == 2
    assert "vgpud0" in qemu.devices


async def test_nothing_is_left_where_the_user_gives_up_at_the_last_question(
    tmp_path: Path, socket_path: Path
) -> None:
    qemu = FakeQemu()
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.CancelScope() as scope:
            cancelling_the_last_question(qemu, scope)
            await attach(qmp, Wish(socket_path=socket_path))
        assert scope.cancelled_caught
    assert "vgpud0" not in qemu.devices
    assert qemu.nodes == {}
