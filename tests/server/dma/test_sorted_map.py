from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dma.sorted_map import SortedMap

KEYS = st.integers(0, 40) | st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(st.booleans(), KEYS)), KEYS, KEYS)
def test_it_answers_as_a_sorted_dictionary_does(changes: list[tuple[bool, int]], low: int, high: int) -> None:
    sorted_map: SortedMap[str] = SortedMap()
    model: dict[int, str] = {}
    for add, key in changes:
        if add:
            sorted_map[key] = model[key] = f"{key}"
        elif key in model:
            assert sorted_map.pop(key) == model.pop(key)
    assert list(sorted_map.values()) == [model[key] for key in sorted(model)]
    assert len(sorted_map) == len(model)
    assert sorted_map.get(low) == model.get(low)
    at_most = [key for key in model if key <= low]
    assert sorted_map.floor(low) == (model[max(at_most)] if at_most else None)
    assert sorted_map.between(low, high) == [model[key] for key in sorted(model) if low <= key < high]


def test_many_keys_in_any_order_stay_sorted() -> None:
    sorted_map: SortedMap[int] = SortedMap()
    keys = [number * 7919 % 10_007 for number in range(10_000)]
    for key in keys:
        sorted_map[key] = key
    assert list(sorted_map.values()) == sorted(keys)
    assert sorted_map.between(1000, 3000) == sorted(key for key in keys if 1000 <= key < 3000)
    for key in keys[:9_990]:
        sorted_map.pop(key)
    assert list(sorted_map.values()) == sorted(keys[9_990:])
    assert all(sorted_map.floor(key) == key for key in keys[9_990:])


def test_a_key_that_is_not_there_cannot_be_popped() -> None:
    sorted_map: SortedMap[int] = SortedMap()
    sorted_map[1] = 1
    with pytest.raises(KeyError):
        sorted_map.pop(2)
    sorted_map.clear()
    assert sorted_map.floor(5) is None
    assert len(sorted_map) == 0
