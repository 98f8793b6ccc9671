from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.guest.accel import TCG
from server.guest.machine import Machine, own_virtio_gpu
from server.guest.qemu import Qemu
from server.qemu.client import vfio_user_pci

QEMU = Qemu(("ld.so", "qemu-system-x86_64", "-L", "/firmware"), (11, 0, 0))


def command(**options: Any) -> list[str]:
    machine = Machine(Path("/k/vmlinuz"), Path("/i/initrd"), TCG, **options)
    return machine.command_line(QEMU, console=5, commands=6)


def values(line: list[str], option: str) -> list[str]:
    return [line[index + 1] for index, part in enumerate(line) if part == option]


def test_the_machine_shares_its_memory_with_device_servers() -> None:
    line = command(memory=256)
    assert tuple(line[:4]) == QEMU.argv
    (memory,) = values(line, "-object")
    assert json.loads(memory) == {
        "qom-type": "memory-backend-memfd", "id": "memory", "size": 256 << 20, "share": True,
    }  # fmt: skip
    assert values(line, "-machine") == ["q35,memory-backend=memory"]


def test_memory_can_be_kept_from_device_servers() -> None:
    (memory,) = values(command(shared_memory=False), "-object")
    assert json.loads(memory)["qom-type"] == "memory-backend-ram"


def test_a_vfio_user_device_is_attached_by_its_socket() -> None:
    line = command(devices=(vfio_user_pci(Path("/run/a,b.sock"), id="gpu"), own_virtio_gpu(xres=800)))
    assert [json.loads(device) for device in values(line, "-device")] == [
        {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": "/run/a,b.sock"}, "id": "gpu"},
        {"driver": "virtio-gpu-pci", "xres": 800},
    ]


def test_an_iommu_comes_before_the_devices_that_it_covers() -> None:
    line = command(devices=(own_virtio_gpu(),), iommu=True)
    devices = [json.loads(device) for device in values(line, "-device")]
    assert [device["driver"] for device in devices] == ["intel-iommu", "virtio-gpu-pci"]
    assert devices[0]["caching-mode"] is True
    assert "intel_iommu=on" in values(line, "-append")[0]


def test_the_control_socket_may_have_a_comma_in_its_name() -> None:
    assert values(command(qmp=Path("/run/a,b")), "-qmp") == ["unix:/run/a,,b,server=on,wait=off"]
    assert values(command(), "-qmp") == []


def test_both_serial_ports_are_inherited_sockets() -> None:
    line = command(extra=("-S",))
    assert values(line, "-chardev") == ["socket,id=console,fd=5", "socket,id=commands,fd=6"]
    assert values(line, "-serial") == ["chardev:console", "chardev:commands"]
    assert line[-1] == "-S"
