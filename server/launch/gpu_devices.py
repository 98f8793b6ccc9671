"""The devices that a QEMU command line gets: a vfio-user client per GPU, and a root port if that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.launch.boot_rom import PROPERTY
from server.launch.qemu_options import QemuCommand, machine_type
from server.qemu.client import DeviceOptions, vfio_user_pci
from server.qemu.names import GPU_ID

_EXPRESS_MACHINES = ("q35", "pc-q35-", "microvm")
_EXPRESS_BUS, _CONVENTIONAL_BUS = "pcie.0", "pci.0"
_ROOT_PORT = "pcie-root-port"
_LAST_CHASSIS = 255


@dataclass(frozen=True, slots=True)
class GpuAttachment:
    """Where QEMU finds the server of a GPU, and the ROM that firmware draws with, if there is one."""

    socket: str
    rom: str | None = None


def with_gpus(
    command: QemuCommand, attachments: Sequence[GpuAttachment], *, root_ports: bool = False
) -> QemuCommand:
    """The command with a GPU for each attachment, at addresses that QEMU chooses.

    QEMU makes the devices that are given as JSON last and in order, so that it knows by then which addresses the
    user's own have taken. The bus is said, as QEMU would take the last that was made, also one for bridges only
    (pxb-pcie). With ``root_ports`` each GPU is alone behind a root port, out of which it can be unplugged: the root bus
    of a q35 machine has no hot-plug.
    """
    root_bus = _root_bus(command)
    for number, attachment in enumerate(attachments):
        name = command.unused_identifier(f"{GPU_ID}{number}")
        bus = root_bus
        if root_ports:
            port = _root_port(command, f"{name}-port", root_bus)
            command = _adding_device(command, port)
            bus = str(port["id"])
        client = vfio_user_pci(Path(attachment.socket), id=name, bus=bus)
        rom = {} if attachment.rom is None else {PROPERTY: attachment.rom}
        command = _adding_device(command, {**client, **rom})
    return command


def _root_bus(command: QemuCommand) -> str:
    """What QEMU calls the bus of the host bridge (``hw/pci-host/q35.c``, ``gpex.c`` and ``i440fx.c``)."""
    return _EXPRESS_BUS if machine_type(command).startswith(_EXPRESS_MACHINES) else _CONVENTIONAL_BUS


def _root_port(command: QemuCommand, name: str, bus: str) -> DeviceOptions:
    chassis = _unused_chassis(command)
    return {"driver": _ROOT_PORT, "id": command.unused_identifier(name), "bus": bus, "chassis": chassis}


def _unused_chassis(command: QemuCommand) -> int:
    """QEMU wants chassis and slot of a port to be unlike those of all others; users count from 0 or 1."""
    taken = set()
    for device in command.settings("device", implied="driver"):
        with suppress(ValueError):  # no chassis, or none that QEMU accepts
            taken.add(int(str(device.get("chassis")), 0))
    return max(number for number in range(_LAST_CHASSIS + 1) if number not in taken)


def _adding_device(command: QemuCommand, device: DeviceOptions) -> QemuCommand:
    return command.adding(("-device", json.dumps(device)))
