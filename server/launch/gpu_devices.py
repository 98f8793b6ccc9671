"""The devices that a QEMU command line gets: a vfio-user client per GPU, and a root port if that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.guest.machine import DeviceOptions, vfio_user_pci
from server.launch.qemu_options import QemuCommand

IDENTIFIER = "vgpud"
"""GPUs are called vgpud0, vgpud1 and so on in QEMU, as those are that vgpud attach plugs in."""

_ROOT_PORT = "pcie-root-port"
_LAST_CHASSIS = 255


def with_gpus(command: QemuCommand, sockets: Sequence[str], *, root_ports: bool = False) -> QemuCommand:
    """The command with a GPU for each socket, at addresses that QEMU chooses.

    QEMU makes the devices that are given as JSON last and in order, so that it knows by then which addresses the
    user's own have taken. With ``root_ports`` each GPU is alone behind a root port, out of which it can be unplugged:
    the root bus of a q35 machine has no hot-plug.
    """
    for number, socket in enumerate(sockets):
        name = command.unused_identifier(f"{IDENTIFIER}{number}")
        where: DeviceOptions = {}
        if root_ports:
            port = _root_port(command, f"{name}-port")
            command = _adding_device(command, port)
            where = {"bus": str(port["id"])}
        command = _adding_device(command, {**vfio_user_pci(Path(socket), id=name), **where})
    return command


def _root_port(command: QemuCommand, name: str) -> DeviceOptions:
    return {"driver": _ROOT_PORT, "id": command.unused_identifier(name), "chassis": _unused_chassis(command)}


def _unused_chassis(command: QemuCommand) -> int:
    """QEMU wants chassis and slot of a port to be unlike those of all others; users count from 0 or 1."""
    taken = set()
    for device in command.settings("device", implied="driver"):
        with suppress(ValueError):  # no chassis, or none that QEMU accepts
            taken.add(int(str(device.get("chassis")), 0))
    return max(number for number in range(_LAST_CHASSIS + 1) if number not in taken)


def _adding_device(command: QemuCommand, device: DeviceOptions) -> QemuCommand:
    return command.adding(("-device", json.dumps(device)))
