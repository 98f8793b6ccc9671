"""The devices that are added."""

import json
from typing import Any

import pytest

from server.launch.gpu_devices import GpuAttachment, with_gpus
from server.launch.qemu_options import parse_command

CLIENT = {"driver": "vfio-user-pci", "id": "vgpud0", "socket": {"type": "unix", "path": "/s,0"}}
ON_PCI = {**CLIENT, "bus": "pci.0"}


def added(
    *words: str, sockets: tuple[str, ...] = ("/s,0",), root_ports: bool = False, rom: str | None = None
) -> list[Any]:
    before = ["qemu", *words]
    gpus = [GpuAttachment(socket, rom) for socket in sockets]
    after = with_gpus(parse_command(before), gpus, root_ports=root_ports).words
    assert after[: len(before)] == before
    new = after[len(before) :]
    assert new[::2] == ["-device"] * (len(new) // 2)
    return [json.loads(word) for word in new[1::2]]


def test_a_gpu_is_a_vfio_user_client_behind_all_other_options() -> None:
    assert added("-device", "edu,addr=1") == [ON_PCI]


def test_each_socket_is_a_gpu_with_a_name_of_its_own() -> None:
    devices = added("-device", "edu,id=vgpud1", sockets=("/a", "/b", "/c"))
    assert [device["id"] for device in devices] == ["vgpud0", "vgpud1-1", "vgpud2"]
    assert [device["socket"]["path"] for device in devices] == ["/a", "/b", "/c"]


def test_no_gpu_asks_for_an_address() -> None:
    assert all("addr" not in device for device in added(sockets=("/a", "/b")))


@pytest.mark.parametrize(
    ("machine", "bus"),
    [
        ("pc", "pci.0"),
        ("pc-i440fx-10.1", "pci.0"),
        ("q35,usb=on", "pcie.0"),
        ("pc-q35-10.1", "pcie.0"),
        ("microvm,pcie=on", "pcie.0"),
    ],
)
def test_a_gpu_is_on_the_bus_of_the_host_bridge_and_not_on_one_for_bridges_only(
    machine: str, bus: str
) -> None:
    (gpu,) = added("-M", machine, "-device", "pxb-pcie,id=p")
    assert gpu["bus"] == bus


def test_a_root_port_is_on_the_bus_of_the_host_bridge() -> None:
    port, _ = added("-M", "q35", "-device", "pxb-pcie,id=p", root_ports=True)
    assert port["bus"] == "pcie.0"


def test_the_rom_that_firmware_draws_with_is_the_gpus() -> None:
    assert added(rom="vga.bin") == [{**ON_PCI, "romfile": "vga.bin"}]


def test_a_root_port_comes_before_its_gpu_and_is_for_it_alone() -> None:
    first, gpu, second, other = added(root_ports=True, sockets=("/s,0", "/b"))
    assert first["driver"] == second["driver"] == "pcie-root-port"
    assert gpu == {**CLIENT, "bus": first["id"]}
    assert other["bus"] == second["id"] != first["id"]


@pytest.mark.parametrize(
    "port",
    ["pcie-root-port,chassis=255", "ioh3420,chassis=0xff", '{"driver": "pcie-root-port", "chassis": 255}'],
)
def test_the_chassis_of_a_port_is_not_one_that_is_taken(port: str) -> None:
    ports = added("-device", port, root_ports=True, sockets=("/a", "/b"))[::2]
    assert [device["chassis"] for device in ports] == [254, 253]


def test_a_chassis_that_is_no_number_is_for_qemu_to_refuse() -> None:
    assert added("-device", "pcie-root-port,chassis=x", root_ports=True)[0]["chassis"] == 255
