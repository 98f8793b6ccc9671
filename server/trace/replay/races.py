"""Where the guest changed memory while the device was looking at it.

Between two messages of its client a device may read the same place twice, and find something else the second time: a
ring, to which the guest has added without a kick. Memory that is filled before a message is sent cannot be both; who
answers each read by itself can.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.trace import Access
from server.trace.reader import TraceReader
from server.trace.replay.intervals import Interval
from server.trace.replay.sparse_bytes import SparseBytes


def count_races(intervals: Iterable[Interval], reader: TraceReader) -> int:
    """How many reads found something else than what was read, or written, there before in the same interval."""
    races = 0
    for interval in intervals:
        seen = SparseBytes()
        for item in interval.items:
            if isinstance(item, Access) and not item.in_place:
                data = reader.data(item)
                races += not item.write and seen.differs(item.address, data)
                seen.put(item.address, data)
    return races
