"""A virtio device for tests: writes what it read back, reversed."""

from __future__ import annotations

from collections.abc import Callable

from devices.virtio.device import DescriptorChain, VirtioDevice


class EchoDevice(VirtioDevice):
    name = "echo"
    device_id = 42
    pci_class = 0xFF0000
    queue_sizes: tuple[int, ...] = (8, 4)

    def __init__(self, queue_sizes: tuple[int, ...] = (8, 4)) -> None:
        self.queue_sizes = queue_sizes
        self.activated: list[int] = []
        self.resets = 0
        self.disconnects = 0
        self.handled: list[tuple[int, bytes]] = []
        self.config = bytearray(b"configuration!\0\0")
        self.before_reply: Callable[[], None] = lambda: None

    @property
    def features(self) -> int:
        return 1 << 1

    def activate(self, features: int) -> None:
        self.activated.append(features)

    def reset(self) -> None:
        self.resets += 1

    def disconnect(self) -> None:
        self.disconnects += 1

    def config_read(self, offset: int, count: int) -> bytes:
        return bytes(self.config[offset : offset + count]).ljust(count, b"\0")

    def config_write(self, offset: int, data: bytes) -> None:
        if offset + len(data) <= len(self.config):
            self.config[offset : offset + len(data)] = data

    async def handle(self, queue: int, chain: DescriptorChain) -> int:
        request = await chain.read(0, 4096)
        self.handled.append((queue, request))
        self.before_reply()
        return await chain.write(request[::-1])

    def status(self) -> dict[str, object]:
        return {"echoed": len(self.handled)}
