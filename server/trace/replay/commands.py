"""What the commands of the recorded client mean for a replay: memory that they map, eventfds that they hand over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from protocol import DmaMap, DmaUnmap, IrqAction, IrqData, SetIrqs
from protocol.trace import TraceError
from server.fds import ReceivedFds
from server.trace.pairing import DecodedMessage, decode
from server.trace.reader import TracedMessage
from server.trace.replay.intervals import Interval
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.server_connection import ServerConnection

MAX_VECTORS = 2048
"""No PCI function has more (PCI Express Base Specification, 7.7.2, Table Size of MSI-X)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A command that is to be sent: with memory, whether the server refused it then."""

    decoded: DecodedMessage
    memory: int | None
    refused: bool

    @property
    def message(self) -> TracedMessage:
        """The command as it was recorded."""
        return self.decoded.message


class Commands:
    """Does to the replay's memory and interrupts what the recorded client did to its own."""

    def __init__(self, memory: ReplayMemory, server: ServerConnection) -> None:
        self._memory = memory
        self._server = server

    def plan(self, interval: Interval) -> list[Planned]:
        """Map what the commands of an interval map. Raises TraceError."""
        refused = {
            item.header.message_id
            for item in interval.items
            if isinstance(item, TracedMessage) and item.header.is_error and not item.inbound
        }
        return [self._plan(message, message.header.message_id in refused) for message in interval.commands]

    def _plan(self, message: TracedMessage, refused: bool) -> Planned:
        decoded = decode(message)
        memory = None
        if isinstance(decoded.value, DmaMap) and not refused:
            files = [facts for facts in message.facts.fds if facts.kind != "eventfd"]
            memory = self._memory.map(decoded.value, files[0] if files else None, message.number)
        return Planned(decoded, memory, refused)

    @contextmanager
    def fds(self, planned: Planned, *, shares_memory: bool) -> Iterator[list[int]]:
        """The fds that go with a command, which stay ours. Raises TraceError where there are too many."""
        request = planned.decoded.value
        if planned.memory is not None and shares_memory:
            yield [planned.memory]
        elif isinstance(request, SetIrqs):
            with self._eventfds(request, planned) as eventfds:
                yield eventfds
        else:
            yield []

    @contextmanager
    def _eventfds(self, request: SetIrqs, planned: Planned) -> Iterator[list[int]]:
        number = len(planned.message.facts.fds)
        if number and request.start + number > MAX_VECTORS:
            raise TraceError(
                f"message {planned.message.number} hands over eventfds for vectors up to "
                f"{request.start + number - 1}, and no device has more than {MAX_VECTORS}"
            )
        made: list[int] = []
        try:
            made.extend(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(number))
        except OSError as error:
            ReceivedFds(made).close()
            raise TraceError(
                f"message {planned.message.number} hands over {number} eventfds: {error.strerror}"
            ) from error
        with ReceivedFds(made) as eventfds:
            yield made
            if not planned.refused:
                self._watch(request, eventfds)

    def _watch(self, request: SetIrqs, eventfds: ReceivedFds) -> None:
        """The server has the eventfds: it signals them, and no others of these vectors."""
        if request.data is IrqData.EVENTFD and request.action is IrqAction.TRIGGER:
            end = request.start + request.count
        elif request.disables and request.data is not IrqData.EVENTFD:
            end = 0
        else:
            return
        for vector in self._server.watched(request.index):
            if not end or request.start <= vector < end:
                self._server.watch(request.index, vector, None)
        for vector in range(request.start, min(end, request.start + len(eventfds))):
            self._server.watch(request.index, vector, eventfds.take())

    def answered(self, request: DecodedMessage | None, *, refused: bool) -> None:
        """The server answered in the recording, and has answered now."""
        if request is None:
            return
        if isinstance(request.value, DmaUnmap) and not refused:
            self._memory.unmap(request.value, request.message.number)
        elif isinstance(request.value, DmaMap) and refused:
            self._memory.refused(request.value, request.message.number)
