"""What a replay found."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from server.trace.pairing import DecodedMessage
from server.trace.reader import TracedMessage

CONTEXT = 6
"""Messages before a divergence that are shown with it."""
MAX_KEPT = 100
"""Divergences that are remembered; more are counted."""

Reached: TypeAlias = tuple[TracedMessage, DecodedMessage | None]
"""A message, and the request that it answers."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The server did something else; ``at`` is the message that shows it, or the last one before."""

    at: TracedMessage | None
    what: str
    before: tuple[Reached, ...] = ()


@dataclass(slots=True)
class Report:
    """Counts what was the same, and keeps the first things that were not."""

    sent: int = 0
    replies: int = 0
    requests: int = 0
    """Messages of the server that its client answered."""
    reads: int = 0
    writes: int = 0
    interrupts: int = 0
    divergences: int = 0
    first: Divergence | None = None
    more: list[Divergence] = field(default_factory=list)
    """Those behind the first, up to MAX_KEPT with it, without what came before each."""
    stopped: str | None = None
    """Why the replay could not go on to the end."""
    cut_short: int = 0
    _recent: deque[Reached] = field(default_factory=lambda: deque(maxlen=CONTEXT))

    def reached(self, message: TracedMessage, request: DecodedMessage | None = None) -> None:
        """The replay is here now; a reply answers ``request``."""
        self._recent.append((message, request))

    def diverged(self, what: str, at: TracedMessage | None = None) -> None:
        """Something is not as it was recorded."""
        self.divergences += 1
        at = at or (self._recent[-1][0] if self._recent else None)
        if self.first is None:
            self.first = Divergence(at, what, tuple(self._recent))
        elif len(self.more) < MAX_KEPT - 1:
            # Its number is all that is shown, and a payload may be large.
            self.more.append(Divergence(at and replace(at, payload=memoryview(b"")), what))

    def stop(self, why: str) -> None:
        """What cannot be gone on from."""
        self.stopped = why

    @property
    def same(self) -> bool:
        """Whether everything was as it was recorded."""
        return not self.divergences and self.stopped is None
