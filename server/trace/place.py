"""Where in a trace a reader of it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from server.trace.pairing import Walked, time_of
from server.trace.reader import TracedSession
from server.trace.text.names import Names


class Place:
    """The session, counted from 1, the names of its device, and when the trace began."""

    def __init__(self) -> None:
        self.session = 0
        self.names = Names()
        self.first = 0
        """When the first message was, in ns since 1970; or what the device did before it, in a continued trace."""
        self._began = False

    def follow(self, walked: Iterable[Walked]) -> Iterator[Walked]:
        """The same items, each while this is where it is. Raises as ``walked`` does."""
        for item in walked:
            time = time_of(item)
            if isinstance(item, TracedSession):
                self.session += 1
                self.names = Names(item.info.device)
            elif time is not None and not self._began:
                self._began = True
                self.first = time
            yield item
