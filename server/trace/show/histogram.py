"""Many numbers in little memory: how many there are of about each size."""

from __future__ import annotations

from collections import Counter
from typing import Final

MANTISSA_BITS: Final = 6
"""Numbers that differ by less than 2**-(MANTISSA_BITS-1), 3 percent, may be counted as one."""

_EXACT_BELOW = 1 << MANTISSA_BITS


class Histogram:
    """Counts of whole numbers from 0 on, in buckets whose width grows with the numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.greatest = 0
        self._buckets: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """One more number; what is less than 0 counts as 0."""
        value = max(value, 0)
        self.count += 1
        self.greatest = max(self.greatest, value)
        shift = max(value.bit_length() - MANTISSA_BITS, 0)
        self._buckets[value >> shift << shift] += 1

    def percentile(self, percent: int) -> int:
        """About the least number that ``percent`` of 100 are not above; exact below 64, and 0 where there is none."""
        rank = -(-self.count * percent // 100)
        seen = 0
        for start in sorted(self._buckets):
            seen += self._buckets[start]
            if seen >= rank:
                return min(_middle(start), self.greatest)
        return 0


def _middle(start: int) -> int:
    return start if start < _EXACT_BELOW else start + (1 << start.bit_length() - MANTISSA_BITS) // 2
