"""Bytes at few places: what is known of them is what was put last, and costs little more than they are."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from server.trace.replay.sparse_bytes import PAGE, SparseBytes

addresses = st.integers(PAGE - 70, PAGE + 70) | st.integers(2**64 - 40, 2**64)
parts = st.binary(min_size=1, max_size=40) | st.just(b"page" * (PAGE // 2))
steps = st.lists(st.tuples(st.booleans(), addresses, parts), max_size=12)


@given(steps, addresses, parts)
def test_what_was_put_last_is_known_until_it_is_dropped(
    steps: list[tuple[bool, int, bytes]], address: int, data: bytes
) -> None:
    sparse, model = SparseBytes(), dict[int, int]()
    for put, start, part in steps:
        if put:
            sparse.put(start, part)
            model.update(enumerate(part, start))
        else:
            sparse.drop(start, len(part))
            for at in range(start, start + len(part)):
                model.pop(at, None)
    runs = list(sparse.runs())
    assert sum(len(run) for _, run in runs) == len(model)
    assert {at: byte for start, run in runs for at, byte in enumerate(run, start)} == model
    assert all(start // PAGE == (start + len(run) - 1) // PAGE for start, run in runs)
    asked = dict(enumerate(data, address))
    assert sparse.differs(address, data) == any(model.get(at, byte) != byte for at, byte in asked.items())
    missing = list(sparse.missing(address, data))
    assert {at: byte for start, run in missing for at, byte in enumerate(run, start)} == {
        at: byte for at, byte in asked.items() if at not in model
    }


def test_what_is_known_takes_little_more_than_it_is() -> None:
    data = bytes(64 << 10)
    tracemalloc.start()
    try:
        sparse = SparseBytes()
        for number in range(64):
            sparse.put(number * len(data) + 20, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(len(run) for _, run in sparse.runs()) == 64 * len(data)
    assert peak < 2 * 64 * len(data)
