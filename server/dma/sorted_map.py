"""A dictionary by address that also answers "what is at or before this address?" at a flat cost."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")

_CHUNK = 256  # keys; an insertion moves at most twice as many


class SortedMap(Generic[V]):
    """Values by key in ``[0, 2**64)``, sorted in chunks of keys.

    sortedcontainers.SortedDict does the same and more, but finds a neighbour by its position, which costs it a
    walk of its index. Here it is two bisections, of arrays: keys that are objects all over the heap cost a cache
    miss per step, and 60,000 keys then cost several times as much as 100.
    """

    __slots__ = ("_chunks", "_first", "_values", "get")

    def __init__(self) -> None:
        self._values: dict[int, V] = {}
        self._chunks: list[array[int]] = []
        self._first = array("Q")
        self.get = self._values.get
        """The value at exactly this key, or None; O(1)."""

    def __len__(self) -> int:
        return len(self._values)

    def __setitem__(self, key: int, value: V) -> None:
        if key not in self._values:
            self._add_key(key)
        self._values[key] = value

    def pop(self, key: int) -> V:
        """Take out the value at ``key``. Raises KeyError."""
        value = self._values.pop(key)
        index = bisect_right(self._first, key) - 1
        chunk = self._chunks[index]
        position = bisect_left(chunk, key)
        del chunk[position]
        if not chunk:
            del self._chunks[index]
            del self._first[index]
        elif position == 0:
            self._first[index] = chunk[0]
        return value

    def clear(self) -> None:
        """Take out everything."""
        self._values.clear()
        self._chunks.clear()
        del self._first[:]

    def floor(self, key: int) -> V | None:
        """The value with the greatest key that is at most ``key``."""
        index = bisect_right(self._first, key) - 1
        if index < 0:
            return None
        chunk = self._chunks[index]
        return self._values[chunk[bisect_right(chunk, key) - 1]]

    def between(self, start: int, end: int) -> list[V]:
        """The values with keys in ``[start, end)``, in order."""
        values = self._values
        found: list[V] = []
        index = max(bisect_right(self._first, start) - 1, 0)
        while index < len(self._chunks) and self._first[index] < end:
            chunk = self._chunks[index]
            keys = chunk[bisect_left(chunk, start) : bisect_left(chunk, end)]
            found += [values[key] for key in keys]
            index += 1
        return found

    def values(self) -> Iterator[V]:
        """All values, in order of their keys."""
        for chunk in self._chunks:
            for key in chunk:
                yield self._values[key]

    def _add_key(self, key: int) -> None:
        if not self._chunks:
            self._chunks.append(array("Q", (key,)))
            self._first.append(key)
            return
        index = max(bisect_right(self._first, key) - 1, 0)
        chunk = self._chunks[index]
        insort(chunk, key)
        if key < self._first[index]:
            self._first[index] = key
        if len(chunk) > 2 * _CHUNK:
            self._chunks.insert(index + 1, chunk[_CHUNK:])
            self._first.insert(index + 1, chunk[_CHUNK])
            del chunk[_CHUNK:]
