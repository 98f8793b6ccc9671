"""The part of a libvirt domain that attaches it to device servers.

libvirt has no element for a vfio-user device, so QEMU's options go into ``<qemu:commandline>``, which libvirt passes on
as they are (https://libvirt.org/drvqemu.html, "Pass-through of arbitrary qemu commands"). A root port comes with each
device, behind libvirt's back, for libvirt would put devices of its own on one that it knows to be free; it has a slot
that libvirt comes to last, when it numbers slots of the root bus upwards. What keeps QEMU from migrating the guest
without the state of its GPU (:mod:`server.qemu.migration_guard`) keeps libvirt from it, too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from server.launch.boot_rom import PROPERTY, ROMS
from server.qemu.client import vfio_user_pci
from server.qemu.migration_guard import guard_node
from server.socket_path import SUN_PATH_MAX

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
FIRST_SLOT = 0x10
"""On pcie.0; QEMU's own devices of a q35 machine are from 0x1b on."""
MAX_DEVICES = 11
FIRST_CHASSIS = 0xE0
"""libvirt numbers the chassis of root ports by their controller's index, from 1 on."""


def domain_fragment(sockets: Sequence[Path], model: str | None = None) -> str:
    """A ``<domain>`` with what a domain needs for a device at each of ``sockets``, and nothing else.

    ``model`` is what the servers' device is, for the ROM with which firmware draws on it. Raises ValueError, one line
    for the user, where there are too many, one comes twice, or a path is not absolute or too long.
    """
    if len(sockets) > MAX_DEVICES:
        raise ValueError(f"one domain takes {MAX_DEVICES} devices at most, not {len(sockets)}")
    if twice := [socket for socket, count in Counter(sockets).items() if count > 1]:
        raise ValueError(
            f"{twice[0]}: named twice; a server has one client at a time: name one for each device"
        )
    rom = {PROPERTY: ROMS[model]} if model in ROMS else {}
    devices = [options for number, socket in enumerate(sockets) for options in _devices(number, socket, rom)]
    arguments = ["-blockdev", json.dumps(guard_node())]
    arguments += [argument for options in devices for argument in ("-device", json.dumps(options))]
    lines = [
        f"<domain type='kvm' xmlns:qemu='{QEMU_NAMESPACE}'>",
        "  <memoryBacking>",
        "    <source type='memfd'/>",
        "    <access mode='shared'/>",
        "  </memoryBacking>",
        "  <qemu:commandline>",
        *(f"    <qemu:arg value={quoteattr(argument)}/>" for argument in arguments),
        "  </qemu:commandline>",
        "</domain>",
    ]
    return "".join(f"{line}\n" for line in lines)


def _devices(
    number: int, socket: Path, rom: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, object]]:
    """The root port, and the device on it."""
    if not socket.is_absolute():
        raise ValueError(f"{socket}: libvirt starts QEMU elsewhere; give the whole path, {socket.absolute()}")
    if len(os.fsencode(socket)) > SUN_PATH_MAX:
        raise ValueError(
            f"{socket}: longer than the {SUN_PATH_MAX} bytes that a UNIX socket allows; choose a shorter path"
        )
    name, chassis = f"vgpud{number}", FIRST_CHASSIS + number
    port = {
        "driver": "pcie-root-port",
        "id": f"{name}-port",
        "bus": "pcie.0",
        "addr": f"{FIRST_SLOT + number:#x}",
        "chassis": chassis,
        "port": chassis,
    }
    return port, dict(vfio_user_pci(socket, id=name, bus=f"{name}-port", **rom))
