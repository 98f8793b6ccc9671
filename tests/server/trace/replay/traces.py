"""Traces that are made up, message by message, for replays to a server that has not seen them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol import Command, Version, encode_reply, encode_request
from protocol.codec import Packable, PackableRequest
from protocol.pcapng import Direction
from protocol.trace import SessionInfo
from server.trace.fd_facts import FdFacts, MessageFacts
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing

EVENTFD = FdFacts("eventfd", 1, 1)
MEMFD = FdFacts("memfd", 1, 7, 1 << 20)


class MadeUp:
    """What is said here, is in the trace."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def ask(
        self,
        value: PackableRequest,
        fds: tuple[FdFacts, ...] = (),
        *,
        message_id: int = 1,
        no_reply: bool = False,
    ) -> None:
        """The client's."""
        data = encode_request(message_id, value, no_reply=no_reply)
        self.recorder.message(Direction.INBOUND, data, MessageFacts(fds).pack())

    def reply(self, command: Command, value: Packable | bytes = b"", *, message_id: int = 1) -> None:
        """The server's."""
        self.recorder.message(Direction.OUTBOUND, encode_reply(message_id, command, value))


@contextmanager
def made_up(path: Path, *, memory: bool = True, device: str = "", sessions: int = 1) -> Iterator[MadeUp]:
    """Write ``path``: what the caller says is the last session behind its handshake, and those before have only that.

    Memory and interrupts count as recorded with ``memory``.
    """
    ring = TraceRing(path)
    info = SessionInfo("test", device, memory=memory, interrupts=memory)
    for _ in range(sessions - 1):
        _begin(ring, info).flush()
    recorder = _begin(ring, info)
    yield MadeUp(recorder)
    recorder.flush()
    ring.close()


def _begin(ring: TraceRing, info: SessionInfo) -> Recorder:
    recorder = Recorder(ring, info)
    recorder.start()
    recorder.message(Direction.INBOUND, encode_request(0, Version(0, 1)))
    recorder.message(Direction.OUTBOUND, encode_reply(0, Command.VERSION, Version(0, 1)))
    return recorder
