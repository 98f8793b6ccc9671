"""An instance of the booted machine: what the program, systemd and a client say of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import trio

from protocol.vfio import PciRegion
from server.client import VfioUserClient, open_client
from tests.server.instances.booted.machine import SECONDS, Machine

VENDOR_AND_DEVICE = bytes.fromhex("f41a 5010")
"""1af4:1050, little endian: virtio 1.2, 4.1.2 and 5.7.1."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One that is defined on ``machine``."""

    machine: Machine
    uuid: UUID

    @property
    def service(self) -> str:
        return f"vgpud@{self.uuid}.service"

    @property
    def listener(self) -> str:
        """The socket's unit."""
        return f"vgpud@{self.uuid}.socket"

    @property
    def socket(self) -> Path:
        """For QEMU, as it is seen from outside."""
        return self.machine.path(f"/run/vgpud/{self.uuid}.sock")

    def vgpud(self, command: str, *options: str) -> str:
        """What ``vgpud COMMAND UUID`` prints."""
        return self.machine.well("vgpud", command, *options, str(self.uuid))

    @property
    def states(self) -> tuple[str, str]:
        """What ``vgpud list`` says, and ``systemctl show`` of the service."""
        listed = self.machine.instances("--defined")[str(self.uuid)]
        return listed["state"], self.machine.unit(self.service)["ActiveState"]

    def becomes(self, state: str) -> None:
        """Wait until systemd has seen it: it is asked until it says so."""
        deadline = time.monotonic() + SECONDS
        while (now := self.machine.unit(self.service)["ActiveState"]) != state:
            assert time.monotonic() < deadline, f"{self.service} is {now}"

    def drop_in(self, text: str) -> None:
        """Change its service until the next boot."""
        path = self.machine.path(f"/run/systemd/system/{self.service}.d/90-test.conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.machine.well("systemctl", "daemon-reload")

    async def shows_its_device(self) -> None:
        """Have a client read the PCI ids."""
        with trio.fail_after(SECONDS):
            async with open_client(self.socket) as client:
                await check_device(client)


async def check_device(client: VfioUserClient) -> None:
    assert await client.region_read(PciRegion.CONFIG, 0, 4) == VENDOR_AND_DEVICE


def define(machine: Machine, uuid: UUID, kind: str = "vgpud-virtio-1", *options: str) -> Instance:
    """Have ``vgpud define`` define an instance of type ``kind``."""
    assert machine.well("vgpud", "define", "--uuid", str(uuid), "--type", kind, *options) == f"{uuid}\n"
    return Instance(machine, uuid)
