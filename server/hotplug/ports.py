"""The hot-pluggable PCI ports of a guest, and which of them are free.

query-pci does not tell: it shows nothing behind a bridge until the guest's firmware has given that a bus number.
The object model knows the buses of all bridges, what is on them, and whether they may be plugged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.hotplug import qom
from server.hotplug.answers import as_objects
from server.hotplug.errors import HotplugError
from server.hotplug.qmp import Qmp
from server.one_line import one_line

_EXPRESS = "pcie-slot"
"""What root ports and the downstream ports of switches are."""
_CONVENTIONAL = ("pci-bridge", "pcie-pci-bridge")
_BUSES = ("PCIE", "PCI")
_PLUGGED = "child["
_DIGITS = re.compile(r"(\d+)")
_ROOT_OF_PC = "/machine/i440fx"
_ROOT_BUS = "pci.0"
_EXPRESS_ROOT_BUS = "pcie.0"
_ADVICE = "start QEMU with -device pcie-root-port,id=gpu-port,chassis=1"
_ADVICE_WITHOUT_PCI = (
    "this machine has no PCI: start QEMU with -machine q35 and -device pcie-root-port,id=gpu-port,chassis=1"
)
_ADVICE_WITHOUT_EXPRESS = "start QEMU with -device pci-bridge,id=gpu-port,chassis_nr=1"


@dataclass(frozen=True, slots=True)
class Port:
    """Where a device can be plugged in: the bus, and what is known of it."""

    bus: str
    is_express: bool
    is_free: bool
    may_be_plugged: bool


async def find_ports(qmp: Qmp) -> list[Port]:
    """All ports that the user gave the guest, those of PCI Express first, in the order of their names.

    The last is the root bus where that is conventional: unlike that of PCI Express, it can be plugged. Raises
    HotplugError.
    """
    express = await qom.types(qmp, _EXPRESS)
    conventional = set().union(*[await qom.types(qmp, kind) for kind in _CONVENTIONAL])
    ports = []
    for folder in (qom.PERIPHERAL, qom.PERIPHERAL_ANON):
        for name, kind in (await qom.children(qmp, folder)).items():
            if kind in express | conventional:
                ports += await _ports_of(qmp, f"{folder}/{name}", kind in express)
    is_conventional = await _has_conventional_root(qmp)
    # QEMU calls the bus of the first port without an id as it does the root bus, and takes the name for that.
    ports = [port for port in ports if port.bus != (_ROOT_BUS if is_conventional else _EXPRESS_ROOT_BUS)]
    ports.sort(key=lambda port: (not port.is_express, _natural(port.bus)))
    if is_conventional:
        ports.append(Port(_ROOT_BUS, is_express=False, is_free=True, may_be_plugged=True))  # it has 32 slots
    return ports


async def choose_bus(qmp: Qmp, wanted: str | None) -> str:
    """The bus to plug a device in: ``wanted``, or that of the first free port. Raises HotplugError."""
    ports = await find_ports(qmp)
    if wanted is None:
        free = _free(ports)
        if not free:
            without_pci = not as_objects(await qmp.execute("query-pci"), "query-pci")
            fix = _ADVICE_WITHOUT_PCI if without_pci else _choice(ports)
            raise HotplugError(f"the guest has no free hot-pluggable port: {fix}")
        return free[0]
    port = next((port for port in ports if port.bus == wanted), None)
    if port is not None and not port.may_be_plugged:
        raise HotplugError(f"--bus {wanted}: that port has hotplug=off; {_choice(ports)}")
    if port is not None and port.is_express and not port.is_free:
        raise HotplugError(f"--bus {wanted}: there is a device already; {_choice(ports)}")
    return wanted  # whether there is such a bus, and it can be plugged, QEMU knows


async def other_choice(qmp: Qmp, bus: str) -> str:
    """What to do where QEMU does not take a device on ``bus``. Raises HotplugError."""
    return _choice(await find_ports(qmp), but=bus)


def _choice(ports: list[Port], but: str | None = None) -> str:
    if free := [bus for bus in _free(ports) if bus != but]:
        return f"choose --bus {one_line(' or --bus '.join(free))}"
    is_conventional = any(port.bus == _ROOT_BUS for port in ports)
    return _ADVICE_WITHOUT_EXPRESS if is_conventional else _ADVICE


def _free(ports: list[Port]) -> list[str]:
    return [port.bus for port in ports if port.is_free and port.may_be_plugged]


async def _has_conventional_root(qmp: Qmp) -> bool:
    """Whether the machine is one of QEMU's ``pc``."""
    name = _ROOT_OF_PC.rpartition("/")[2]
    return name in await qom.children(qmp, "/machine") and _ROOT_BUS in await qom.children(qmp, _ROOT_OF_PC)


async def _ports_of(qmp: Qmp, path: str, is_express: bool) -> list[Port]:
    known = await qom.properties(qmp, path)
    may_be_plugged = "hotplug" not in known or await qom.value(qmp, path, "hotplug") is True
    buses = [name for name, kind in (await qom.children(qmp, path)).items() if kind in _BUSES]
    return [
        Port(bus, is_express, not await _devices_on(qmp, f"{path}/{bus}"), may_be_plugged) for bus in buses
    ]


async def _devices_on(qmp: Qmp, path: str) -> list[str]:
    return [name for name in await qom.properties(qmp, path) if name.startswith(_PLUGGED)]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts rp2 before rp10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
