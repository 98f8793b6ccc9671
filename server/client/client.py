"""The client: a connection, and a method for every command."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import trio

from protocol import (
    MAJOR,
    MINOR,
    Agreement,
    BitmapRequest,
    Capabilities,
    Command,
    DeviceFeature,
    DeviceInfo,
    DeviceReset,
    DmaLoggingControl,
    DmaLoggingReport,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    Feature,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqInfo,
    LoggingRange,
    Message,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    ProtocolError,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    Version,
    agree,
    encode_request,
    max_message_size,
)
from protocol.capabilities import DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_MSG_FDS
from protocol.codec import PackableRequest
from protocol.wire import U32_MAX
from server.client.channel import Channel
from server.client.requests import ClientMemory, RemoteError, Requests
from server.fds import ReceivedFds

CAPABILITIES = Capabilities(
    max_msg_fds=16, max_data_xfer_size=1 << 20, max_dma_maps=65_535, pgsizes=4096, write_multiple=True
)
"""What a client proposes unless told otherwise."""

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE


class VfioUserClient(Requests):
    """A client of one server; see :func:`open_client`.

    Every method sends one request and waits for its reply; requests of several tasks are under way at the same
    time. Raises RemoteError for an error reply, ConnectionError when the connection has ended, ProtocolError when
    the server broke the protocol.
    """

    async def get_info(self) -> DeviceInfo:
        """How many regions and interrupt indexes there are."""
        return DeviceInfo.unpack(await self._payload(GetInfo()))

    async def get_region_info(self, index: int) -> tuple[RegionInfo, ReceivedFds]:
        """A region with all its capabilities, and the fd to map it by if it has one; the caller closes it."""
        info, fds = _with_fds(await self.request(GetRegionInfo(index)), RegionInfo.unpack)
        if info.needed is None:
            return info, fds
        fds.close()
        request = GetRegionInfo(index, info.needed)
        return _with_fds(await self.request(request), RegionInfo.unpack)

    async def get_region_io_fds(self, index: int) -> tuple[RegionIoFds, ReceivedFds]:
        """The sub-regions of a region whose accesses may come by fd, and the fds; the caller closes them."""
        info, fds = _with_fds(await self.request(GetRegionIoFds(index)), RegionIoFds.unpack)
        if info.needed is None:
            return info, fds
        fds.close()
        request = GetRegionIoFds(index, info.needed)
        return _with_fds(await self.request(request), RegionIoFds.unpack)

    async def get_irq_info(self, index: int) -> IrqInfo:
        """An interrupt index."""
        return IrqInfo.unpack(await self._payload(GetIrqInfo(index)))

    async def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """Set up, mask, unmask or raise interrupts; eventfds, if any, one per vector."""
        await self._payload(request, fds)

    async def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read ``count`` bytes of a region."""
        reply = RegionReadReply.unpack(await self._payload(RegionRead(offset, region, count)))
        if (reply.offset, reply.region, len(reply.data)) != (offset, region, count):
            raise ProtocolError(errno.EINVAL, f"the reply to a read of region {region} is about another one")
        return reply.data

    async def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region, and wait until it is done; ``post(RegionWrite(...))`` does not wait."""
        reply = RegionWriteReply.unpack(await self._payload(RegionWrite(offset, region, data)))
        if reply != RegionWriteReply(offset, region, len(data)):
            raise ProtocolError(errno.EINVAL, f"the reply to a write of region {region} is about another one")

    async def write_multi(self, writes: Sequence[RegionWrite]) -> int:
        """Do several writes of at most 8 bytes each, in order; returns how many were done."""
        request = RegionWriteMulti(tuple(writes))
        return RegionWriteMultiReply.unpack(await self._payload(request)).count

    async def dma_map(
        self,
        address: int,
        size: int,
        flags: DmaMapFlags = READ_WRITE,
        *,
        fd: int | None = None,
        offset: int = 0,
    ) -> None:
        """Map memory: ``size`` bytes at ``offset`` of ``fd``, or without an fd, to be reached by message."""
        await self._payload(DmaMap(address, size, flags, offset), () if fd is None else (fd,))

    async def dma_unmap(
        self, address: int, size: int, *, bitmap: BitmapRequest | None = None
    ) -> DmaUnmapReply:
        """Take mapped memory away from the server, and ask which of its pages are dirty if ``bitmap`` is given."""
        flags = DmaUnmapFlags.NONE if bitmap is None else DmaUnmapFlags.GET_DIRTY_BITMAP
        return DmaUnmapReply.unpack(await self._payload(DmaUnmap(address, size, flags, bitmap)))

    async def dma_unmap_all(self) -> None:
        """Take all mapped memory away from the server."""
        await self._payload(DmaUnmap(flags=DmaUnmapFlags.ALL))

    async def reset(self) -> None:
        """Reset the device."""
        await self._payload(DeviceReset())

    async def device_feature(self, request: DeviceFeature) -> DeviceFeature:
        """Get, set or probe a feature of the device."""
        return DeviceFeature.unpack(await self._payload(request))

    async def start_dma_logging(self, page_size: int = 4096, ranges: Sequence[LoggingRange] = ()) -> int:
        """Have the server log what it writes to ``ranges`` (none: to everything); the page size that it chose."""
        data = DmaLoggingControl(page_size, tuple(ranges)).pack()
        request = DeviceFeature(Feature.DMA_LOGGING_START, FeatureFlags.SET, data)
        return DmaLoggingControl.unpack((await self.device_feature(request)).data).page_size

    async def stop_dma_logging(self) -> None:
        """Have the server log no more, and forget what was logged."""
        await self.device_feature(DeviceFeature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET))

    async def report_dma_logging(self, iova: int, length: int, page_size: int = 4096) -> bytes:
        """The bitmap of what was written of a range since the last report: a bit per ``page_size`` bytes, u64s."""
        asked = DmaLoggingReport(iova, length, page_size)
        request = DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, asked.pack())
        room = min(request.argsz + asked.bitmap_size, U32_MAX)
        reply = await self.device_feature(replace(request, argsz=room))
        report = DmaLoggingReport.unpack(reply.data)
        if replace(report, bitmap=b"") != asked or len(report.bitmap) != asked.bitmap_size:
            raise ProtocolError(errno.EINVAL, f"the report of {iova:#x}+{length:#x} is about another range")
        return report.bitmap

    async def mig_data_read(self, size: int) -> bytes:
        """The next bytes of the device's state, ``size`` at most."""
        return MigDataReadReply.unpack(await self._payload(MigDataRead(size))).data

    async def mig_data_write(self, data: bytes) -> None:
        """The next bytes of the device's state."""
        await self._payload(MigDataWrite(data))

    async def _payload(self, value: PackableRequest, fds: Sequence[int] = ()) -> memoryview:
        """The payload of a reply that brings no fds."""
        message = await self.request(value, fds)
        with ReceivedFds(message.fds) as received:
            if len(received):
                raise ProtocolError(errno.EINVAL, f"the reply to {value.command.name} came with fds")
        return message.payload


Value = TypeVar("Value")


def _with_fds(message: Message, unpack: Callable[[memoryview], Value]) -> tuple[Value, ReceivedFds]:
    fds = ReceivedFds(message.fds)
    try:
        return unpack(message.payload), fds
    except ProtocolError:
        fds.close()
        raise


@asynccontextmanager
async def open_client(
    path: str | os.PathLike[str],
    *,
    memory: ClientMemory | None = None,
    capabilities: Capabilities | None = CAPABILITIES,
) -> AsyncIterator[VfioUserClient]:
    """Connect to the server at ``path``, and say VERSION; closes the connection with the block.

    ``memory`` answers DMA_READ and DMA_WRITE. With ``TwinSocket(supported=True)`` among the ``capabilities`` the
    server's requests come by a socket of their own. Raises OSError, and as :func:`attach_client`.
    """
    connected = await trio.open_unix_socket(os.fspath(path))
    sock = socket.socket(fileno=connected.socket.detach())
    async with attach_client(sock, memory=memory, capabilities=capabilities) as client:
        yield client


@asynccontextmanager
async def attach_client(
    sock: socket.socket,
    *,
    memory: ClientMemory | None = None,
    capabilities: Capabilities | None = CAPABILITIES,
) -> AsyncIterator[VfioUserClient]:
    """As :func:`open_client`, on a connected socket, which is the client's from here on.

    Raises RemoteError where the server refuses, ConnectionError where it hangs up, ProtocolError where it answers
    against the rules.
    """
    limits = capabilities or Capabilities()
    max_size = max_message_size(limits.max_data_xfer_size or DEFAULT_MAX_DATA_XFER_SIZE)
    max_fds = limits.max_msg_fds or DEFAULT_MAX_MSG_FDS
    failure: Exception | None = None
    with ExitStack() as stack:
        main = Channel(sock, max_size, max_fds)
        stack.callback(main.close)
        agreement, twin = await _say_version(main, Version(MAJOR, MINOR, capabilities), max_size)
        async with trio.open_nursery() as nursery:
            client = VfioUserClient(main, agreement, memory, nursery)
            stack.callback(client.close)
            nursery.start_soon(client.serve, main)
            if twin is not None:
                stack.callback(twin.close)
                nursery.start_soon(client.serve, twin)
            try:
                yield client
            except Exception as error:
                failure = error  # raised below, so that the caller gets it as it is, and not in a group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _say_version(main: Channel, request: Version, max_size: int) -> tuple[Agreement, Channel | None]:
    await main.send(encode_request(0, request))
    message = await main.receive()
    if message is None:
        raise ConnectionResetError(errno.ECONNRESET, "the server hung up instead of answering VERSION")
    with ReceivedFds(message.fds) as fds:
        header = message.header
        if not header.is_reply or header.command != Command.VERSION or header.message_id != 0:
            raise ProtocolError(errno.EINVAL, "the server's first message is no reply to VERSION")
        if header.is_error:
            raise RemoteError(header.command, header.error)
        agreement = agree(request, Version.unpack(message.payload))
        index = agreement.twin_socket_fd
        if index is None:
            return agreement, None
        if index >= len(fds):
            raise ProtocolError(errno.EINVAL, f"the twin socket is fd {index} of {len(fds)}")
        twin = socket.fromfd(message.fds[index], socket.AF_UNIX, socket.SOCK_STREAM)
        return agreement, Channel(twin, max_size, max_fds=0)
