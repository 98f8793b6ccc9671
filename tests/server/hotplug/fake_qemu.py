"""A QMP server that knows as much of a guest as hot-plugging asks for, and misbehaves as it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from server.guest.child import plain_nursery
from server.hotplug.qmp import Qmp, connected
from server.socket_path import listen_at

Json = dict[str, Any]
Say = Callable[[Any], "list[Json | bytes]"]
"""From the arguments of a command to what is sent: messages, in which ID stands for the command's id, or bytes."""

GREETING: Json = {
    "QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}, "capabilities": ["oob"]}
}
ID = "the id of the command"
HANG_UP = b""


def returns(value: Any) -> Json:
    return {"return": value, "id": ID}


def refuses(description: str, error_class: str = "GenericError") -> Json:
    return {"error": {"class": error_class, "desc": description}, "id": ID}


def event(name: str, **data: Any) -> Json:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}


def deleted(device: str) -> Json:
    return event("DEVICE_DELETED", device=device, path=f"/machine/peripheral/{device}")


@dataclass
class Device:
    """``kind`` is its type; ``parts`` are further children, ``bus`` is where it sits."""

    kind: str
    bus: str = "pcie.0"
    parts: tuple[str, ...] = ()
    hotplug: bool | None = None
    own_bus: str | None = None


def root_port(hotplug: bool = True) -> Device:
    return Device("pcie-root-port", hotplug=hotplug)


@dataclass
class FakeQemu:
    """The guest that it pretends to run, and what it has been asked to do."""

    greeting: Json | bytes = field(default_factory=lambda: GREETING)
    backends: dict[str, tuple[int, bool]] = field(default_factory=lambda: {"mem": (1 << 30, True)})
    main_memory: str = "/objects/mem"
    memory_devices: list[Json] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=lambda: {"rp0": root_port(), "rp1": root_port()})
    anonymous: dict[str, Device] = field(default_factory=dict)
    types: dict[str, set[str]] = field(
        default_factory=lambda: {
            "vfio-user-pci": {"vfio-user-pci"},
            "pcie-slot": {"pcie-root-port", "xio3130-downstream"},
            "pci-bridge": {"pci-bridge"},
            "pcie-pci-bridge": {"pcie-pci-bridge"},
        }
    )
    is_numbered: bool = True
    nodes: dict[str, Json] = field(default_factory=dict)
    """Block devices, by node-name."""
    root_bus: str | None = None
    """That of a machine of the pc type."""
    says: dict[str, Say] = field(default_factory=dict)
    """What is said to commands in place of what the guest gives."""
    executed: list[tuple[str, Any]] = field(default_factory=list)

    def commands(self) -> list[str]:
        return [command for command, _ in self.executed]

    def answer(self, command: str, arguments: Any) -> list[Json | bytes]:
        """All that is sent for a command, which is executed where nothing else was told."""
        self.executed.append((command, arguments))
        if command in self.says:
            return self.says[command](arguments)
        method: Say = getattr(self, command.replace("-", "_"))
        return method(arguments)

    def qmp_capabilities(self, _: Any) -> list[Json | bytes]:
        return [returns({})]

    def query_status(self, _: Any) -> list[Json | bytes]:
        return [returns({"status": "running", "running": True})]

    def blockdev_add(self, arguments: Any) -> list[Json | bytes]:
        name = arguments["node-name"]
        if name in self.nodes:
            return [refuses(f"Duplicate nodes with node-name='{name}'")]
        self.nodes[name] = arguments
        return [returns({})]

    def blockdev_del(self, arguments: Any) -> list[Json | bytes]:
        name = arguments["node-name"]
        if self.nodes.pop(name, None) is None:
            return [refuses(f"Failed to find node with node-name='{name}'")]
        return [returns({})]

    def query_memdev(self, _: Any) -> list[Json | bytes]:
        return [
            returns(
                [{"id": name, "size": size, "share": share} for name, (size, share) in self.backends.items()]
            )
        ]

    def query_memory_devices(self, _: Any) -> list[Json | bytes]:
        return [returns(self.memory_devices)]

    def qom_list_types(self, arguments: Any) -> list[Json | bytes]:
        return [returns([{"name": name} for name in self.types.get(arguments["implements"], set())])]

    def qom_get(self, arguments: Any) -> list[Json | bytes]:
        path, name = arguments["path"], arguments["property"]
        if (path, name) == ("/machine", "memory-backend"):
            return [returns(self.main_memory)]
        assert name == "hotplug"
        return [returns(self._at(path).hotplug)]

    def qom_list(self, arguments: Any) -> list[Json | bytes]:
        path = arguments["path"]
        folders = {"/machine/peripheral": self.devices, "/machine/peripheral-anon": self.anonymous}
        if path in ("/machine", "/machine/i440fx"):
            found = self._of_the_machine(path)
        elif path in folders:
            found = {name: f"child<{device.kind}>" for name, device in folders[path].items()}
        elif path.count("/") == 3:
            found = self._properties(path)
        else:
            bus = path.rpartition("/")[2]
            here = [device for device in self.devices.values() if device.bus == bus]
            found = {f"child[{n}]": f"link<{device.kind}>" for n, device in enumerate(here)}
        return [
            returns([{"name": "type", "type": "string"}, *({"name": n, "type": t} for n, t in found.items())])
        ]

    def _of_the_machine(self, path: str) -> dict[str, str]:
        if self.root_bus is None:
            return {"q35": "child<q35-pcihost>"}
        return {"i440fx": "child<i440FX-pcihost>"} if path == "/machine" else {self.root_bus: "child<PCI>"}

    def _at(self, path: str) -> Device:
        folder, _, name = path.rpartition("/")
        return (self.devices if folder.endswith("peripheral") else self.anonymous)[name]

    def _properties(self, path: str) -> dict[str, str]:
        device = self._at(path)
        found = {"realized": "bool", **dict.fromkeys(device.parts, "child<memory-region>")}
        if device.hotplug is not None:
            found["hotplug"] = "bool"
        if any(word in device.kind for word in ("port", "stream", "bridge")):
            express = device.kind != "pci-bridge"
            found[device.own_bus or path.rpartition("/")[2]] = "child<PCIE>" if express else "child<PCI>"
        return found

    def query_pci(self, _: Any) -> list[Json | bytes]:
        ports = [name for name, device in self.devices.items() if device.hotplug is not None]
        bridges = []
        for number, port in enumerate(ports, 1):
            behind = [
                {"bus": number, "slot": 0, "function": 0, "qdev_id": name}
                for name, device in self.devices.items()
                if device.bus == port
            ]
            bridge: Json = {"bus": {"number": 0}} | ({"devices": behind} if self.is_numbered else {})
            bridges.append({"bus": 0, "slot": number, "function": 0, "qdev_id": port, "pci_bridge": bridge})
        return [returns([{"bus": 0, "devices": bridges}])]

    def device_add(self, arguments: Any) -> list[Json | bytes]:
        self.devices[arguments["id"]] = Device("vfio-user-pci", arguments["bus"])
        return [returns({})]

    def device_del(self, arguments: Any) -> list[Json | bytes]:
        if self.devices.pop(arguments["id"], None) is None:
            return [refuses(f"Device '{arguments['id']}' not found", "DeviceNotFound")]
        return [returns({}), deleted(arguments["id"])]

    async def talk(self, stream: trio.SocketStream) -> None:
        """Serve one client."""
        async with stream:
            await self._send(stream, self.greeting, None)
            received = b""
            while chunk := await stream.receive_some():
                *lines, received = (received + chunk).split(b"\n")
                for request in map(json.loads, lines):
                    for message in self.answer(request["execute"], request.get("arguments")):
                        if message == HANG_UP:
                            return
                        await self._send(stream, message, request["id"])

    async def _send(self, stream: trio.SocketStream, message: Json | bytes, number: object) -> None:
        if isinstance(message, dict):
            known = {**message, "id": number} if message.get("id") == ID else message
            message = json.dumps(known).encode() + b"\r\n"
        await stream.send_all(message)


def cancelling_the_last_question(qemu: FakeQemu, scope: trio.CancelScope) -> None:
    """Have the scope cancelled when query-pci is asked for a second time, which is all that is left to do then."""

    def answer(arguments: Any) -> list[Json | bytes]:
        if qemu.commands().count("query-pci") == 2:
            scope.cancel()
        return qemu.query_pci(arguments)

    qemu.says["query-pci"] = answer


@asynccontextmanager
async def running(qemu: FakeQemu, folder: Path) -> AsyncIterator[Path]:
    """Serve one client after another at the path that is given."""
    path = folder / "qmp.sock"

    async def serve(listener: trio.SocketListener) -> None:
        while True:
            with suppress(trio.BrokenResourceError):
                await qemu.talk(await listener.accept())

    with listen_at(path) as listener:
        listener.setblocking(False)
        async with plain_nursery() as nursery:
            nursery.start_soon(serve, trio.SocketListener(trio.socket.from_stdlib_socket(listener)))
            yield path
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking_to(qemu: FakeQemu, folder: Path) -> AsyncIterator[Qmp]:
    """A connection to ``qemu``."""
    async with running(qemu, folder) as path, connected(path) as qmp:
        yield qmp
