"""The vfio-user devices of a guest: what they are called, where the guest sees them, whether they can be unplugged."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from server.hotplug import qom
from server.hotplug.answers import as_object, as_objects, number_of
from server.hotplug.errors import HotplugError
from server.hotplug.qmp import Qmp
from server.one_line import one_line
from server.qemu.client import CLIENT
from server.qemu.names import GPU_ID

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
"""What QEMU takes for an id."""
_MSIX_TABLE = "msix-table"
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
"""How QEMU writes / and brackets in the name of a memory region (memory_region_escape_name)."""
_BUSES, _SLOTS, _FUNCTIONS = 256, 32, 8


async def check_client_exists(qmp: Qmp) -> None:
    """See to it that QEMU has a vfio-user client. Raises HotplugError."""
    if CLIENT not in await qom.types(qmp, CLIENT):
        raise HotplugError(f"this QEMU ({qmp.release}) has no {CLIENT}: 10.1 or later has it")


async def choose_id(qmp: Qmp, wanted: str | None) -> str:
    """The id for a new device: ``wanted``, or the first of vgpud0, vgpud1, ... that is free. Raises HotplugError."""
    taken = await qom.children(qmp, qom.PERIPHERAL)
    if wanted is None:
        return next(name for name in (f"{GPU_ID}{n}" for n in itertools.count()) if name not in taken)
    if not _ID.fullmatch(wanted):
        raise HotplugError(f"--id {one_line(wanted)}: an id is a letter, then letters, digits, -, . and _")
    if wanted in taken:
        raise HotplugError(f"--id {wanted}: the guest has such a device already; choose another id")
    return wanted


async def find_device(qmp: Qmp, wanted: str | None) -> str:
    """The id of the vfio-user device that is meant: ``wanted``, or the only one. Raises HotplugError."""
    present = await qom.children(qmp, qom.PERIPHERAL)
    ours = sorted(name for name, kind in present.items() if kind == CLIENT)
    if wanted is None and len(ours) == 1:
        return ours[0]
    if not ours:
        raise HotplugError(f"the guest has no {CLIENT} device with an id")
    if wanted is None:
        raise HotplugError(
            f"the guest has several devices: choose one with --id: {one_line(', '.join(ours))}"
        )
    if wanted not in ours:
        raise HotplugError(
            f"--id {one_line(wanted)}: the guest has no such device; it has {one_line(', '.join(ours))}"
        )
    return wanted


async def is_present(qmp: Qmp, device: str) -> bool:
    """Whether there is a device of that id. Raises HotplugError."""
    return device in await qom.children(qmp, qom.PERIPHERAL)


async def has_devices(qmp: Qmp) -> bool:
    """Whether the guest has a vfio-user device, with an id or without. Raises HotplugError."""
    folders = [await qom.children(qmp, folder) for folder in (qom.PERIPHERAL, qom.PERIPHERAL_ANON)]
    return any(CLIENT in folder.values() for folder in folders)


async def has_msix(qmp: Qmp, device: str) -> bool:
    """Whether QEMU gives the guest MSI-X for that device. Raises HotplugError."""
    parts = await qom.children(qmp, f"{qom.PERIPHERAL}/{device}")
    return any(name.startswith(_MSIX_TABLE) for name in parts)


async def find_in_regions(qmp: Qmp, device: str, wanted: re.Pattern[str]) -> str | None:
    """What is ``wanted`` of the names of a device's memory regions, which have the path of its server's socket.

    Raises HotplugError.
    """
    for name in await qom.children(qmp, f"{qom.PERIPHERAL}/{device}"):
        if match := wanted.search(_ESCAPED.sub(lambda code: chr(int(code[1], 16)), name)):
            return match[0]
    return None


async def address_of(qmp: Qmp, device: str) -> str | None:
    """Where the guest sees a device, as lspci writes it; None while the guest has not numbered the bus.

    Raises HotplugError.
    """
    for bus in as_objects(await qmp.execute("query-pci"), "query-pci"):
        for found in devices_of(bus):
            if found.get("qdev_id") == device:
                number = number_of(found, "bus", _BUSES)
                slot, function = number_of(found, "slot", _SLOTS), number_of(found, "function", _FUNCTIONS)
                return f"{number:02x}:{slot:02x}.{function}"
    return None


def devices_of(bus: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The devices of a bus and of the buses behind it."""
    for device in as_objects(bus.get("devices", []), "devices"):
        yield device
        if "pci_bridge" in device:
            yield from devices_of(as_object(device["pci_bridge"], "pci_bridge"))
