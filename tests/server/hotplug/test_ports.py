"""Which ports of a guest a device can be plugged in."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.hotplug.errors import HotplugError
from server.hotplug.ports import choose_bus, other_choice
from tests.server.hotplug.fake_qemu import Device, FakeQemu, returns, root_port, talking_to


async def chosen(qemu: FakeQemu, folder: Path, wanted: str | None = None) -> str:
    async with talking_to(qemu, folder) as qmp:
        return await choose_bus(qmp, wanted)


async def test_the_first_free_port_is_chosen_in_the_order_of_numbers(tmp_path: Path) -> None:
    devices = {
        "rp10": root_port(),
        "rp9": root_port(),
        "rp2": root_port(),
        "net": Device("virtio-net-pci", "rp2"),
    }
    assert await chosen(FakeQemu(devices=devices), tmp_path) == "rp9"


async def test_a_port_that_may_not_be_plugged_is_passed_over(tmp_path: Path) -> None:
    devices = {"rp0": root_port(hotplug=False), "rp1": root_port()}
    assert await chosen(FakeQemu(devices=devices), tmp_path) == "rp1"


async def test_the_port_of_a_switch_will_do(tmp_path: Path) -> None:
    devices = {
        "rp0": root_port(),
        "up": Device("x3130-upstream", "rp0"),
        "down": Device("xio3130-downstream", "up"),
    }
    assert await chosen(FakeQemu(devices=devices), tmp_path) == "down"


async def test_a_conventional_bridge_is_taken_where_no_port_is_free(tmp_path: Path) -> None:
    devices = {"bridge": Device("pci-bridge"), "rp0": root_port()}
    assert await chosen(FakeQemu(devices=devices), tmp_path) == "rp0"
    devices["net"] = Device("virtio-net-pci", "rp0")
    assert await chosen(FakeQemu(devices=devices), tmp_path) == "bridge"


async def test_a_port_without_an_id_has_a_bus_all_the_same(tmp_path: Path) -> None:
    port = Device("pcie-root-port", hotplug=True, own_bus="pcie.1")
    assert await chosen(FakeQemu(devices={}, anonymous={"device[0]": port}), tmp_path) == "pcie.1"


async def test_a_port_whose_bus_is_called_as_the_root_bus_is_passed_over(tmp_path: Path) -> None:
    nameless = {"device[0]": Device("pcie-root-port", hotplug=True, own_bus="pcie.0")}
    assert await chosen(FakeQemu(devices={"rp0": root_port()}, anonymous=nameless), tmp_path) == "rp0"
    with pytest.raises(
        HotplugError, match="no free hot-pluggable port: start QEMU with -device pcie-root-port,id="
    ):
        await chosen(FakeQemu(devices={}, anonymous=nameless), tmp_path)


async def test_a_machine_without_pci_is_to_be_another(tmp_path: Path) -> None:
    qemu = FakeQemu(devices={}, says={"query-pci": lambda _: [returns([])]})
    with pytest.raises(
        HotplugError, match="this machine has no PCI: start QEMU with -machine q35 and -device pcie"
    ):
        await chosen(qemu, tmp_path)


@pytest.mark.parametrize(
    "devices",
    [
        {},
        {"net": Device("virtio-net-pci")},
        {"rp0": root_port(hotplug=False)},
        {"rp0": root_port(), "net": Device("virtio-net-pci", "rp0")},
    ],
    ids=["nothing", "no port", "hotplug=off", "taken"],
)
async def test_where_no_port_is_free_the_option_of_qemu_is_named(
    tmp_path: Path, devices: dict[str, Device]
) -> None:
    with pytest.raises(
        HotplugError, match="no free hot-pluggable port: start QEMU with -device pcie-root-port,id="
    ):
        await chosen(FakeQemu(devices=devices), tmp_path)


async def test_the_bus_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    assert await chosen(FakeQemu(), tmp_path, "rp1") == "rp1"


async def test_a_bus_that_is_no_port_is_left_to_qemu(tmp_path: Path) -> None:
    assert await chosen(FakeQemu(), tmp_path, "pci.0") == "pci.0"


async def test_a_port_that_cannot_take_the_device_is_refused_with_those_that_can(tmp_path: Path) -> None:
    devices = {
        "rp0": root_port(),
        "rp1": root_port(hotplug=False),
        "rp2": root_port(),
        "net": Device("virtio-net-pci", "rp0"),
    }
    with pytest.raises(HotplugError, match="--bus rp0: there is a device already; choose --bus rp2"):
        await chosen(FakeQemu(devices=devices), tmp_path, "rp0")
    with pytest.raises(HotplugError, match="--bus rp1: that port has hotplug=off; choose --bus rp2"):
        await chosen(FakeQemu(devices=devices), tmp_path, "rp1")
    del devices["rp2"]
    with pytest.raises(HotplugError, match=r"--bus rp0: .*; start QEMU with -device pcie-root-port"):
        await chosen(FakeQemu(devices=devices), tmp_path, "rp0")


async def test_the_root_bus_of_a_pc_is_taken_where_nothing_better_is(tmp_path: Path) -> None:
    qemu = FakeQemu(devices={"net": Device("virtio-net-pci", "pci.0")}, root_bus="pci.0")
    assert await chosen(qemu, tmp_path) == "pci.0"
    qemu.devices["bridge"] = Device("pci-bridge", "pci.0")
    assert await chosen(qemu, tmp_path) == "bridge"


async def test_a_pc_whose_root_bus_takes_nothing_wants_a_bridge(tmp_path: Path) -> None:
    async with talking_to(FakeQemu(devices={}, root_bus="pci.0"), tmp_path) as qmp:
        assert (
            await other_choice(qmp, "pci.0") == "start QEMU with -device pci-bridge,id=gpu-port,chassis_nr=1"
        )
        assert await other_choice(qmp, "nope") == "choose --bus pci.0"
