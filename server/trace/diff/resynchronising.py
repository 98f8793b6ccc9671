"""Where two traces meet again after a difference that is longer than what may be held of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from server.trace.diff.alignment import Jump, run_places
from server.trace.diff.sides import Side

RUN: Final = 32
"""Equal messages in a row by which a place far away is recognised."""


class _Search:
    """Looks in what is ahead of one side for a run of what is held of the other."""

    def __init__(self, held: Side, ahead: Side) -> None:
        digests = [one.digest for one in held.all()]
        self._length = min(RUN, len(digests))
        self._places = run_places(digests, self._length)
        self._digests: Iterator[int] = ahead.digests()
        self._run: deque[int] = deque(maxlen=self._length)
        self._seen = 0
        self.ended = False

    def step(self) -> tuple[int, int] | None:
        """One message more: how far to go in what is held and in what is ahead, once that is known."""
        digest = next(self._digests, None)
        self.ended = digest is None
        if digest is None:
            return None
        self._run.append(digest)
        self._seen += 1
        if len(self._run) < self._length:
            return None
        place = self._places.get(tuple(self._run))
        return None if place is None else (place, self._seen - self._length)


def find_far(a: Side, b: Side) -> Jump | None:
    """How far to go in both to where they are equal again: near in one of them, however far in the other."""
    in_a, in_b = _Search(held=b, ahead=a), _Search(held=a, ahead=b)
    while not (in_a.ended and in_b.ended):
        found = in_b.step()
        if found is not None:
            return Jump(found[0], found[1], RUN)
        found = in_a.step()
        if found is not None:
            return Jump(found[1], found[0], RUN)
    return None
