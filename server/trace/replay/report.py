"""What a replay found."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from server.trace.reader import TracedMessage

CONTEXT = 6
"""Messages before a divergence that are shown with it."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The server did something else; ``at`` is the message that shows it, or the last one before."""

    at: TracedMessage | None
    what: str
    before: tuple[TracedMessage, ...]


@dataclass(slots=True)
class Report:
    """Counts what was the same, and keeps the first thing that was not."""

    sent: int = 0
    replies: int = 0
    requests: int = 0
    """Messages of the server that its client answered."""
    reads: int = 0
    writes: int = 0
    interrupts: int = 0
    divergences: int = 0
    first: Divergence | None = None
    stopped: str | None = None
    """Why the replay could not go on to the end."""
    cut_short: int = 0
    _recent: deque[TracedMessage] = field(default_factory=lambda: deque(maxlen=CONTEXT))

    def reached(self, message: TracedMessage) -> None:
        """The replay is here now."""
        self._recent.append(message)

    def diverged(self, what: str, at: TracedMessage | None = None) -> None:
        """Something is not as it was recorded."""
        self.divergences += 1
        if self.first is None:
            recent = tuple(self._recent)
            last = recent[-1] if recent else None
            self.first = Divergence(at or last, what, recent)

    def stop(self, why: str) -> None:
        """What cannot be gone on from."""
        self.stopped = why

    @property
    def same(self) -> bool:
        """Whether everything was as it was recorded."""
        return not self.divergences and self.stopped is None
