"""A fake QEMU whose vfio-user client does connect to the server, as far as VERSION."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from protocol import Version, encode_request
from tests.server.hotplug.fake_qemu import FakeQemu, Json, refuses

SECONDS = 120


@dataclass
class VfioUserQemu(FakeQemu):
    """Each device that is added is a connection, which ends when it is deleted."""

    clients: dict[str, socket.socket] = field(default_factory=dict)

    def device_add(self, arguments: Any) -> list[Json | bytes]:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        try:
            client.connect(arguments["socket"]["path"])
        except OSError as error:
            client.close()
            return [refuses(f"Failed to connect: {error.strerror}")]
        client.sendall(encode_request(0, Version(0, 0)))
        assert client.recv(4096)
        self.clients[arguments["id"]] = client
        said = super().device_add(arguments)
        path = arguments["socket"]["path"].replace("/", "\\x2f")
        self.devices[arguments["id"]].parts = (f"vfio-user:{path} BAR 4[0]",)
        return said

    def device_del(self, arguments: Any) -> list[Json | bytes]:
        if arguments["id"] in self.clients:
            self.clients.pop(arguments["id"]).close()
        return super().device_del(arguments)


@contextmanager
def vfio_user_qemu(**options: Any) -> Iterator[VfioUserQemu]:
    """It ends with the block, and its connections with it."""
    qemu = VfioUserQemu(**options)
    try:
        yield qemu
    finally:
        for client in qemu.clients.values():
            client.close()
