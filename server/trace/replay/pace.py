"""When things are done again: at once, or as far apart as they were."""

from __future__ import annotations

import trio

MAX_GAP = 60.0
"""Seconds that a longer pause of the recording takes: what happens in it is nothing."""
NS_PER_SECOND = 10**9


class Pace:
    """Keeps the time of the recording, where that is wanted. Times are in ns since 1970."""

    def __init__(self, *, original: bool) -> None:
        self._original = original
        self._due = 0.0
        self._time: int | None = None

    def waits(self, time: int) -> bool:
        """Whether what was recorded at ``time`` is to be done later than now."""
        return self._original and self._due_at(time) > trio.current_time()

    async def keep(self, time: int) -> None:
        """Wait for when to do what was recorded at ``time``."""
        if self._original:
            self._due, self._time = self._due_at(time), time
            await trio.sleep_until(self._due)

    def _due_at(self, time: int) -> float:
        if self._time is None:
            return trio.current_time()
        gap = (time - self._time) / NS_PER_SECOND  # less than 0 where the clock was set
        return self._due + min(max(gap, 0.0), MAX_GAP)
