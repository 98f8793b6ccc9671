"""Serving requests: the envelope that all commands share (virtio 1.3, 5.7.6.7)."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from struct import Struct

from devices.contract import GuestMemoryError, GuestRange
from devices.virtio.device import DescriptorChain
from devices.virtio_gpu.errors import CommandError
from devices.virtio_gpu.protocol import (
    HEADER,
    HEADER_SIZE,
    MEM_ENTRY,
    REQUEST_LIMIT,
    Command,
    Feature,
    HeaderFlag,
    Response,
)
from devices.virtio_gpu.resources import MAX_ENTRIES, ResourceTable

Reply = tuple[Response, bytes] | None
"""A response with data, or None for OK_NODATA."""
Handler = Callable[[bytes, DescriptorChain], Awaitable[Reply]]
"""Executes one request, which is at least as long as its structure.

Raises :class:`CommandError` or :class:`devices.contract.GuestMemoryError`.
"""

_ECHOED = int(HeaderFlag.FENCE | HeaderFlag.INFO_RING_IDX)
_OK = int(Response.OK_NODATA)
_PLAIN_OK = HEADER.pack(_OK, 0, 0, 0, 0)
_TOO_SHORT = HEADER.pack(Response.ERR_UNSPEC, 0, 0, 0, 0)


@dataclass(slots=True)
class Entry:
    """A command of a queue: the bytes that its request has at least, the features it needs, how often it was served."""

    name: str
    length: int
    handler: Handler
    needs: int = 0
    served: int = 0


Table = dict[int, Entry]


def entry(command: Command, body: Struct | None, handler: Handler, needs: Feature | None = None) -> Table:
    """A table of one command, whose request is a header and ``body``."""
    length = HEADER_SIZE + (body.size if body else 0)
    return {int(command): Entry(command.name.lower(), length, handler, 0 if needs is None else 1 << needs)}


class CommandQueue:
    """Serves the requests of one virtqueue. Whatever a request is, it is answered, and nothing is raised."""

    def __init__(self, table: Table, resources: ResourceTable) -> None:
        self._table = table
        self._resources = resources
        self._missing = ~0
        self.refused: Counter[str] = Counter()
        """How often a command was answered with an error, by the names of both."""

    def negotiated(self, features: int) -> None:
        """Serve the commands that ``features`` allow."""
        self._missing = ~features

    @property
    def served(self) -> dict[str, int]:
        """How often each command was served."""
        return {command.name: command.served for command in self._table.values() if command.served}

    async def serve(self, chain: DescriptorChain) -> int:
        """Execute the request in ``chain`` and write the response; returns the bytes written."""
        epoch = self._resources.epoch
        request = await chain.read(0, REQUEST_LIMIT)
        if epoch != self._resources.epoch:
            return 0
        if len(request) < HEADER_SIZE:
            self._refuse("request", Response.ERR_UNSPEC)
            return await chain.write(_TOO_SHORT)
        kind, flags, fence_id, ctx_id, ring_idx = HEADER.unpack_from(request)
        reply = await self._execute(kind, request, chain)
        flags &= _ECHOED
        if reply is None:
            if not flags:
                return await chain.write(_PLAIN_OK)
            return await chain.write(HEADER.pack(_OK, flags, fence_id, ctx_id, ring_idx))
        response, data = reply
        return await chain.write(HEADER.pack(response, flags, fence_id, ctx_id, ring_idx) + data)

    async def _execute(self, kind: int, request: bytes, chain: DescriptorChain) -> Reply:
        command = self._table.get(kind)
        if command is None or command.needs & self._missing:
            return self._refuse("unknown command", Response.ERR_UNSPEC)
        if len(request) < command.length:
            return self._refuse(command.name, Response.ERR_UNSPEC)
        command.served += 1
        try:
            return await command.handler(request, chain)
        except CommandError as error:
            return self._refuse(command.name, error.response)
        except GuestMemoryError as error:
            out_of_memory = error.errno == errno.ENOMEM
            return self._refuse(
                command.name, Response.ERR_OUT_OF_MEMORY if out_of_memory else Response.ERR_UNSPEC
            )

    def _refuse(self, name: str, response: Response) -> Reply:
        self.refused[f"{name}: {response.name.lower()}"] += 1
        return response, b""


async def read_entries(
    chain: DescriptorChain, offset: int, count: int, resources: ResourceTable
) -> list[GuestRange]:
    """The ``count`` memory entries from byte ``offset`` of a request on; entries that touch are merged.

    Raises :class:`CommandError` where there are too many, or fewer than promised.
    """
    if count > MAX_ENTRIES:
        raise CommandError(Response.ERR_OUT_OF_MEMORY)
    size = count * MEM_ENTRY.size
    if chain.readable_length < offset + size:
        raise CommandError(Response.ERR_UNSPEC)
    epoch = resources.epoch
    data = await chain.read(offset, size)
    if epoch != resources.epoch or len(data) != size:
        raise CommandError(Response.ERR_UNSPEC)
    ranges: list[GuestRange] = []
    start = end = 0
    for address, length in MEM_ENTRY.iter_unpack(data):
        if address == end:
            end += length
            continue
        if end > start:
            ranges.append(GuestRange(start, end - start))
        start, end = address, address + length
    if end > start:
        ranges.append(GuestRange(start, end - start))
    return ranges
