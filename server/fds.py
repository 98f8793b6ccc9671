"""File descriptors that came with a message: each is owned by one object that closes it exactly once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class ReceivedFds:
    """The fds of one message. What nobody takes is closed when the ``with`` block ends."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The fds, to be used and not to be closed."""
        return tuple(self._fds)

    def duplicates(self) -> ReceivedFds:
        """Copies, with an owner of their own. Raises OSError with none made."""
        copies = ReceivedFds()
        try:
            copies._fds.extend(map(os.dup, self._fds))
        except OSError:
            copies.close()
            raise
        return copies

    def take(self) -> int | None:
        """Give the next fd away, to an owner who closes it; None when there is none left."""
        return self._fds.pop(0) if self._fds else None

    def close(self) -> None:
        """Close what was not taken."""
        while self._fds:
            os.close(self._fds.pop())
