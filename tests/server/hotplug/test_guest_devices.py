"""What the devices of a guest are called, and where it sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.hotplug.answers import UnexpectedAnswer
from server.hotplug.errors import HotplugError
from server.hotplug.guest_devices import address_of, check_client_exists, choose_id, find_device, has_msix
from tests.server.hotplug.fake_qemu import Device, FakeQemu, returns, root_port, talking_to

OURS = "vfio-user-pci"


async def test_a_qemu_without_a_vfio_user_client_is_refused(tmp_path: Path) -> None:
    qemu = FakeQemu(types={})
    async with talking_to(qemu, tmp_path) as qmp:
        with pytest.raises(
            HotplugError, match=r"this QEMU \(11.1.3\) has no vfio-user-pci: 10.1 or later has it"
        ):
            await check_client_exists(qmp)


async def test_the_first_free_number_is_in_the_id_of_a_device(tmp_path: Path) -> None:
    qemu = FakeQemu(devices={"vgpud0": Device(OURS), "vgpud2": Device(OURS)})
    async with talking_to(qemu, tmp_path) as qmp:
        assert await choose_id(qmp, None) == "vgpud1"
        assert await choose_id(qmp, "gpu-1.x_y") == "gpu-1.x_y"
        with pytest.raises(HotplugError, match="--id vgpud2: the guest has such a device already"):
            await choose_id(qmp, "vgpud2")


@pytest.mark.parametrize("wanted", ["", "0gpu", "a b", "a/b", "ü", "gpu\n"])
async def test_an_id_is_one_that_qemu_takes(tmp_path: Path, wanted: str) -> None:
    async with talking_to(FakeQemu(), tmp_path) as qmp:
        with pytest.raises(HotplugError, match="an id is a letter, then"):
            await choose_id(qmp, wanted)


async def test_the_only_device_needs_no_name(tmp_path: Path) -> None:
    qemu = FakeQemu(devices={"rp0": root_port(), "gpu": Device(OURS, "rp0")})
    async with talking_to(qemu, tmp_path) as qmp:
        assert await find_device(qmp, None) == "gpu"
        assert await find_device(qmp, "gpu") == "gpu"
        with pytest.raises(HotplugError, match=r"--id rp0: the guest has no such device; it has gpu$"):
            await find_device(qmp, "rp0")


async def test_of_several_devices_one_has_to_be_chosen(tmp_path: Path) -> None:
    qemu = FakeQemu(devices={"b": Device(OURS), "a": Device(OURS)})
    async with talking_to(qemu, tmp_path) as qmp:
        with pytest.raises(HotplugError, match=r"several devices: choose one with --id: a, b$"):
            await find_device(qmp, None)
        assert await find_device(qmp, "b") == "b"


async def test_where_there_is_no_device_none_is_found(tmp_path: Path) -> None:
    async with talking_to(FakeQemu(), tmp_path) as qmp:
        for wanted in (None, "vgpud0"):
            with pytest.raises(HotplugError, match="the guest has no vfio-user-pci device"):
                await find_device(qmp, wanted)


async def test_a_device_is_where_the_guest_numbered_its_bus(tmp_path: Path) -> None:
    qemu = FakeQemu(devices={"rp0": root_port(), "rp1": root_port(), "gpu": Device(OURS, "rp1")})
    async with talking_to(qemu, tmp_path) as qmp:
        assert await address_of(qmp, "gpu") == "02:00.0"
        qemu.is_numbered = False
        assert await address_of(qmp, "gpu") is None


async def test_whether_a_device_has_msix_is_seen_from_its_table(tmp_path: Path) -> None:
    with_table = Device(OURS, parts=("bus master[0]", "msix-table[0]", "msix-pba[0]"))
    qemu = FakeQemu(devices={"with": with_table, "without": Device(OURS, parts=("bus master[0]",))})
    async with talking_to(qemu, tmp_path) as qmp:
        assert await has_msix(qmp, "with")
        assert not await has_msix(qmp, "without")


def at(**place: Any) -> list[Any]:
    return [{"bus": 0, "devices": [{"qdev_id": "gpu", "bus": 1, "slot": 0, "function": 0, **place}]}]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (at(bus=256), "bus is no number below 256"),
        (at(slot=32), "slot is no number below 32"),
        (at(function="0"), "function is no number below 8"),
        (at(bus=-1), "bus is no number"),
        ([{"devices": [{"pci_bridge": []}]}], "pci_bridge is no object"),
        ([{"devices": 5}], "devices is no array"),
        ({}, "query-pci is no array"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_refused(tmp_path: Path, answer: Any, says: str) -> None:
    qemu = FakeQemu(says={"query-pci": lambda _: [returns(answer)]})
    async with talking_to(qemu, tmp_path) as qmp:
        with pytest.raises(UnexpectedAnswer, match=says):
            await address_of(qmp, "gpu")
