"""Finds contents by their hash, in traces that were edited by what keeps packets, and not where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

MAX_PLACES: Final = 1 << 17
"""Contents of a generation. A recorder refers to none that is further back than what it remembers, which is as many."""
MAX_ROUNDS: Final = 64
"""How often a trace is read from its start for contents, at most."""


class ContentIndex:
    """Where contents are, as far as they have been come across: memory is bounded by two generations.

    What is looked for is mostly just behind what was found before, so the trace is gone through once, as it is read.
    """

    def __init__(self, scan: Callable[[], Iterator[tuple[bytes, int]]]) -> None:
        """``scan`` goes through all contents, from the first on: the digest of each, and where it is."""
        self._scan = scan
        self._round = scan()
        self._places: dict[bytes, int] = {}
        self._older: dict[bytes, int] = {}
        self._dropped = False
        self._rounds = 0

    def find(self, digest: bytes) -> int | None:
        """Where the content with ``digest`` is; None if it is nowhere, or if too much has been looked for."""
        place = self._places.get(digest, self._older.get(digest))
        for _ in range(2):  # what is left of this round, and a whole one
            if place is not None or self._rounds >= MAX_ROUNDS:
                break
            place = self._next(digest)
        return place

    def _next(self, digest: bytes) -> int | None:
        """Go on to a content, or to the end."""
        for found, place in self._round:
            self._add(found, place)
            if found == digest:
                return place
        self._rounds = self._rounds + 1 if self._dropped else MAX_ROUNDS  # nothing is left that is not known
        self._round = self._scan()
        return None

    def _add(self, digest: bytes, place: int) -> None:
        if digest in self._places or digest in self._older:
            return
        if len(self._places) >= MAX_PLACES:
            self._dropped = self._dropped or bool(self._older)
            self._older, self._places = self._places, {}
        self._places[digest] = place
