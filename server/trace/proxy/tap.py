"""What passes a proxy in one direction, cut into messages for the trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from devices.contract import Log
from protocol import Command, Decoder, Message, ProtocolError, max_message_size
from protocol.pcapng import Direction
from protocol.wire import Buffer
from server.trace.fd_facts import FdFacts, MessageFacts, fd_facts
from server.trace.proxy.seen_areas import SeenAreas
from server.trace.recorder import Recorder
from server.trace.recording import whole

MAX_DATA = 16 << 20
"""Bytes of data of the longest message that can be recorded."""
MAX_PASSED_FDS = 253
"""Fds that Linux passes along with one segment at most (SCM_MAX_FD)."""


class SessionRecorder(Recorder):
    """Begins its section of the trace with the first message: who connects and says nothing leaves none."""

    def message(self, direction: Direction, data: Buffer, comment: str = "") -> None:
        """As the base class."""
        super().message(direction, data, comment)
        self.start()

    def malformed(self, direction: Direction, data: bytes, reason: str, comment: str = "") -> None:
        """As the base class."""
        super().malformed(direction, data, reason, comment)
        self.start()


class Tap:
    """Records the messages of one direction, which is passed on as it comes.

    Of what can no longer be cut into messages, the beginning is recorded, and then nothing; that is said once.
    """

    def __init__(
        self,
        recorder: Recorder,
        direction: Direction,
        log: Log,
        *,
        twin: bool = False,
        areas: SeenAreas | None = None,
    ) -> None:
        """``areas``: who is told of messages before they are passed on."""
        self._recorder = recorder
        self._areas = areas
        self._direction = direction
        self._log = log
        self._twin = twin
        self._decoder = Decoder(max_message_size(MAX_DATA), MAX_PASSED_FDS)
        self._broken = False
        self._carried = 0
        """Bytes of a message that has begun and not ended."""
        self._facts: dict[int, FdFacts] = {}
        """By a number that stands for the fd, which is gone when its message is whole."""
        self._next_fact = 0
        self._messages: list[Message] = []
        self._malformed: tuple[bytes, str, str] | None = None
        """What is no message, why, and the facts of its fds."""

    def take(self, data: memoryview, fds: Sequence[int]) -> int:
        """Hear of a read; where in ``data`` the last message begins, 0 if before it, or if that is not known.

        The fds of a read belong there. ``data`` has to stay as it is until :meth:`record`.
        """
        if self._broken or not data:
            return 0
        numbers = self._look_at(fds)
        self._decoder.feed(data, numbers)
        try:
            self._messages.extend(self._decoder)
        except ProtocolError as error:
            self._broken = True
            facts = tuple(self._facts.pop(number) for number in self._decoder.take_fds())
            comment = MessageFacts(facts, self._twin).pack()
            self._malformed = self._decoder.rest, error.reason, comment
            self._log.warning(
                "recording_stopped",
                sender="client" if self._direction is Direction.INBOUND else "server",
                twin=self._twin,
                reason=error.reason,
            )
            return 0
        if self._areas is not None:
            self._tell(self._areas, dict(zip(numbers, fds, strict=True)))
        ended = sum(message.header.size for message in self._messages) - self._carried
        self._carried = len(data) - ended
        begun = ended if self._carried else ended - self._messages[-1].header.size
        return max(begun, 0)

    def record(self) -> None:
        """Record the messages that :meth:`take` has completed."""
        for message in self._messages:
            facts = tuple(self._facts.pop(number) for number in message.fds)
            comment = MessageFacts(facts, self._twin).pack()
            self._recorder.message(self._direction, whole(message), comment)
        self._messages.clear()
        if self._malformed is not None:
            self._recorder.malformed(self._direction, *self._malformed)
            self._malformed = None

    def _tell(self, areas: SeenAreas, fds: Mapping[int, int]) -> None:
        """Tell of the messages that have been completed, with those of their ``fds`` that came just now.

        What came with an earlier part of a message is the proxy's no more; short replies come whole.
        """
        for message in self._messages:
            if self._direction is Direction.OUTBOUND:
                areas.hear(message, [fds[number] for number in message.fds if number in fds])
            elif areas and message.header.command in (Command.REGION_READ, Command.DEVICE_RESET):
                areas.before_passing(whole(message))

    def _look_at(self, fds: Sequence[int]) -> Sequence[int]:
        first = self._next_fact
        for fd in fds:
            self._facts[self._next_fact] = fd_facts(fd)
            self._next_fact += 1
        return range(first, self._next_fact)
