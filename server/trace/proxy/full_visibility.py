"""What a proxy changes so that every access to memory, and every interrupt, passes through it.

From the client to the server:

* DMA_MAP loses its fd. The proxy keeps that, and answers the server's DMA_READ and DMA_WRITE from it. Where it cannot
  use the fd, and where there was none, the client is asked.
* DEVICE_GET_REGION_INFO asks for all that there is to know.
* SET_IRQS that connects eventfds to interrupts brings eventfds of the proxy's instead.

From the server to the client:

* DEVICE_GET_REGION_INFO says of no region that it can be mapped, and brings no fd; DEVICE_GET_REGION_IO_FDS names no
  sub-regions.
* VERSION brings a twin socket of the proxy's instead of the server's.

Everything else passes as it is, also what makes no sense. Message ids stay: the client's requests and the server's are
apart from each other, and a reply goes to the side that asked.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from devices.contract import Log
from protocol import (
    HEADER_SIZE,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaWrite,
    DmaWriteReply,
    GetRegionInfo,
    Header,
    IrqAction,
    IrqData,
    Message,
    ProtocolError,
    RegionFlags,
    RegionInfo,
    RegionIoFds,
    SetIrqs,
    SparseMmap,
    encode_error,
    encode_reply,
)
from protocol.pcapng import Direction
from protocol.wire import U32_MAX, Buffer
from server.fds import ReceivedFds
from server.trace.fd_facts import message_facts
from server.trace.proxy.client_memory import WithheldMemory, read_parts, write_parts
from server.trace.proxy.pump import Outlet
from server.trace.proxy.relayed_interrupts import RelayedInterrupts
from server.trace.proxy.spliced_twin import SplicedTwin, splice_twin
from server.trace.proxy.tap import MAX_DATA
from server.trace.proxy.unanswered import Unanswered
from server.trace.recorder import Recorder
from server.trace.recording import whole

WHOLE_REGION_INFO = 8192
"""Bytes that a server gets for a region info, so that it is whole whatever the client has room for."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Two ways that belong together: to the client and to the server, on the main socket or on the twin socket."""

    client: Outlet
    server: Outlet
    twin: bool = False


class FullVisibility:
    """One client and its server: takes every message of theirs, and sends what the other is to get.

    The trace has what the server got and sent, since that is what a replay repeats.
    """

    def __init__(self, recorder: Recorder, log: Log) -> None:
        self.on_twin: Callable[[SplicedTwin], object] = SplicedTwin.close
        """Takes over the twin socket, if there is one."""
        self.interrupts = RelayedInterrupts(recorder.interrupt)
        self._memory = WithheldMemory()
        self._unanswered = Unanswered()
        self._recorder = recorder
        self._log = log
        self._opened = False
        self._rooms: dict[int, int] = {}
        """Bytes that a client has for a region info, by message id."""
        self._requests: dict[int, Callable[[Lane, Message, ReceivedFds], None]] = {
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_REGION_INFO: self._get_region_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
        }

    def close(self) -> None:
        """Close every fd that is still here."""
        self._unanswered.close()
        self._memory.close()
        self.interrupts.close()

    def from_client(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        """Take a message of the client's. Raises OSError, and ProtocolError where this cannot go on."""
        self._unanswered.check_room()
        header = message.header
        serve = self._requests.get(header.command) if header.is_command else None
        if serve is not None:
            with suppress(ProtocolError):  # the server is to say what is wrong with it
                serve(lane, message, fds)
                return
        self._to_server(lane, whole(message), fds.numbers)

    def from_server(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        """Take a message of the server's. Raises OSError, and ProtocolError where it makes no sense."""
        self.interrupts.deliver()  # what was signalled before this message was sent
        facts = message_facts(fds.numbers, twin=lane.twin)
        self._recorder.message(Direction.OUTBOUND, whole(message), facts)
        header = message.header
        if header.is_reply:
            self._unanswered.take_reply(header)
            self._pass_on_reply(lane, message, fds)
        elif not self._answer(lane, message):
            lane.client.send(whole(message), fds.numbers)

    def _to_server(self, lane: Lane, data: bytes, fds: Sequence[int] = ()) -> None:
        lane.server.send(data, fds)
        if not lane.server.gone:
            self._recorder.message(Direction.INBOUND, data, message_facts(fds, twin=lane.twin))

    def _dma_map(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        request = DmaMap.unpack(message.payload)
        if len(fds) > 1:
            raise ProtocolError(errno.EINVAL, f"DMA_MAP takes one fd, not {len(fds)}")
        data = whole(message)
        fd = fds.take()
        region = None
        if fd is not None:
            region = self._memory.offer(request, fd)
            if region is None:
                self._log.warning("dma_fd_unusable", address=hex(request.address), size=request.size)
            if request.flags & DmaMapFlags.MAPPABLE:
                flags = request.flags & ~DmaMapFlags.MAPPABLE
                data = _with_payload(message.header, replace(request, flags=flags).pack())
        self._to_server(lane, data)
        if region is not None:
            self._unanswered.add(message.header, partial(self._memory.settle, region))

    def _dma_unmap(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        try:
            request = DmaUnmap.unpack(message.payload)
        except ProtocolError:
            request = DmaUnmap(flags=DmaUnmapFlags.ALL)  # a server that knows better leaves nothing here
        self._to_server(lane, whole(message), fds.numbers)
        self._unanswered.add(message.header, partial(self._memory.settle_unmap, request))

    def _get_region_info(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        # What a client is told to make room for has to be what it then gets, which is less than the server has.
        request = GetRegionInfo.unpack(message.payload)
        roomy = replace(request, argsz=max(request.argsz, WHOLE_REGION_INFO))
        self._rooms[message.header.message_id] = request.argsz
        self._to_server(lane, _with_payload(message.header, roomy.pack()), fds.numbers)

    def _set_irqs(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        request = SetIrqs.unpack(message.payload)
        request.check_fds(len(fds))
        connects = request.data is IrqData.EVENTFD or request.disables
        if request.action is not IrqAction.TRIGGER or not connects:
            self._to_server(lane, whole(message), fds.numbers)
            return
        change = self.interrupts.prepare(request, fds)
        try:
            self._to_server(lane, whole(message), change.fds)
        except OSError:
            self.interrupts.settle(change, False)
            raise
        self._unanswered.add(message.header, partial(self.interrupts.settle, change))

    def _pass_on_reply(self, lane: Lane, message: Message, fds: ReceivedFds) -> None:
        header, payload = message.header, message.payload
        if header.command in _REWRITTEN and not header.is_error:
            room = self._rooms.pop(header.message_id, U32_MAX)
            lane.client.send(_with_payload(header, _REWRITTEN[header.command](payload, room)))
            return
        twin = None if self._opened else splice_twin(header, payload, fds.numbers)
        self._opened = True
        if twin is None:
            lane.client.send(whole(message), fds.numbers)
            return
        self.on_twin(twin)
        lane.client.send(whole(message), twin.fds)
        twin.handed_over()

    def _answer(self, lane: Lane, message: Message) -> bool:
        """Answer a DMA_READ or DMA_WRITE; False where that is for the client to do."""
        header = message.header
        reply: DmaReadReply | DmaWriteReply | None = None
        try:
            if header.is_command and header.command == Command.DMA_READ:
                reply = self._read(DmaRead.unpack(message.payload))
            elif header.is_command and header.command == Command.DMA_WRITE:
                reply = self._write(DmaWrite.unpack(message.payload))
        except ProtocolError:
            return False
        except OSError as error:
            answer = encode_error(header.message_id, header.command, error.errno or errno.EIO)
        else:
            if reply is None:
                return False
            answer = encode_reply(header.message_id, header.command, reply)
        if not header.no_reply:
            self._to_server(lane, answer)
        return True

    def _read(self, request: DmaRead) -> DmaReadReply | None:
        parts = self._memory.find(request.address, request.count) if request.count <= MAX_DATA else None
        return None if parts is None else DmaReadReply(request.address, read_parts(parts))

    def _write(self, request: DmaWrite) -> DmaWriteReply | None:
        parts = self._memory.find(request.address, len(request.data))
        if parts is None:
            return None
        write_parts(parts, request.data)
        return DmaWriteReply(request.address, len(request.data))


def _unmappable(payload: Buffer, room: int) -> bytes:
    """A region info of which nothing can be mapped, for a request whose argsz is ``room``."""
    info = RegionInfo.unpack(payload)
    capabilities = tuple(one for one in info.capabilities if not isinstance(one, SparseMmap))
    return replace(info, flags=info.flags & ~RegionFlags.MMAP, capabilities=capabilities).pack(room)


def _without_sub_regions(payload: Buffer, _room: int) -> bytes:
    """An answer to DEVICE_GET_REGION_IO_FDS that names no fds."""
    return RegionIoFds(RegionIoFds.unpack(payload).index).pack()


_REWRITTEN: Mapping[int, Callable[[Buffer, int], bytes]] = {
    Command.DEVICE_GET_REGION_INFO: _unmappable,
    Command.DEVICE_GET_REGION_IO_FDS: _without_sub_regions,
}
"""The payloads of replies that the client gets otherwise, and without their fds."""


def _with_payload(header: Header, payload: bytes) -> bytes:
    return header._replace(size=HEADER_SIZE + len(payload)).pack() + payload
