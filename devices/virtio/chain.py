"""One buffer of a virtqueue: the guest memory that a chain of descriptors names."""

from __future__ import annotations

from collections.abc import Sequence

from devices.contract import GuestMemory, GuestRange
from devices.virtio.constants import MAX_CHAIN_BYTES
from devices.virtio.device import MalformedRequest

_ADDRESS_LIMIT = 1 << 64


class Chain:
    """A descriptor chain; implements :class:`devices.virtio.device.DescriptorChain`.

    ``head`` is the index that names the chain in the used ring. Reading and writing raise GuestMemoryError
    where the driver named memory that is not there.
    """

    __slots__ = ("_memory", "head", "readable", "readable_length", "writable", "writable_length")

    def __init__(self, head: int, memory: GuestMemory) -> None:
        self.head = head
        self.readable: list[GuestRange] = []
        self.writable: list[GuestRange] = []
        self.readable_length = 0
        self.writable_length = 0
        self._memory = memory

    def add(self, address: int, length: int, writable: bool) -> None:
        """Append what a descriptor names.

        Raises MalformedRequest for device-readable memory behind device-writable memory (2.7.4.2), a range
        that wraps, and a chain of more than 4 GiB.
        """
        if address + length > _ADDRESS_LIMIT:
            raise MalformedRequest(f"the buffer at {address:#x} wraps around the address space")
        if writable:
            self.writable_length += length
            parts = self.writable
        elif self.writable_length:
            raise MalformedRequest("a readable descriptor follows a writable one")
        else:
            self.readable_length += length
            parts = self.readable
        if self.readable_length + self.writable_length > MAX_CHAIN_BYTES:
            raise MalformedRequest("the chain is longer than 4 GiB")
        if length:
            parts.append(GuestRange(address, length))

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of the readable parts from ``offset``; fewer than ``length`` where the chain ends.

        Without ``length`` it is all of them, and the guest decides how many: check ``readable_length``.
        """
        available = max(0, self.readable_length - offset)
        wanted = available if length is None else min(length, available)
        pieces = _cut(self.readable, offset, wanted)
        if len(pieces) == 1:
            return await self._memory.read(*pieces[0])
        return b"".join([await self._memory.read(address, size) for address, size in pieces])

    async def write(self, data: bytes | memoryview, offset: int = 0) -> int:
        """Write into the writable parts from ``offset``, cut off where they end; returns bytes written."""
        done = 0
        rest = memoryview(data)
        for address, size in _cut(self.writable, offset, len(rest)):
            await self._memory.write(address, rest[done : done + size])
            done += size
        return done


def _cut(parts: Sequence[GuestRange], offset: int, length: int) -> list[GuestRange]:
    """``length`` bytes of ``parts`` from ``offset``, or what there is of them."""
    if length <= 0:
        return []
    if parts and offset + length <= parts[0].length:
        return [GuestRange(parts[0].address + offset, length)]
    pieces: list[GuestRange] = []
    for address, size in parts:
        if offset >= size:
            offset -= size
            continue
        take = min(size - offset, length)
        pieces.append(GuestRange(address + offset, take))
        offset = 0
        length -= take
        if not length:
            break
    return pieces
