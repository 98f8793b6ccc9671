"""How two sequences of messages are laid beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.trace.diff.alignment import MAX_CHANGES, RUN, Jump, Step, align, find_jump
from server.trace.diff.meaning import Meaning

Value = tuple[int, int]
"""A message: its shape, and its value."""


class Listed:
    """All of a sequence, or so much of it as ``most`` says."""

    def __init__(self, values: Sequence[Value], most: int | None = None) -> None:
        self.broken = False
        self._values = [Meaning(hash(value), value, value[0]) for value in values]
        self._held = self._values[:most]

    def at(self, index: int) -> Meaning | None:
        return self._held[index] if index < len(self._held) else None

    def ends_at(self, index: int) -> bool:
        return index == len(self._values) == len(self._held)

    def all(self) -> Sequence[Meaning]:
        return self._held


def numbered(numbers: Sequence[int]) -> list[Value]:
    """Messages that all have shapes of their own."""
    return [(number, 0) for number in numbers]


def steps_of(a: Sequence[Value], b: Sequence[Value]) -> list[Step]:
    """All steps from one end to the other."""
    steps: list[Step] = []
    i = j = 0
    while i < len(a) and j < len(b):
        found = [Step.EQUAL] if a[i] == b[j] else align(Listed(a[i:]), Listed(b[j:]))
        assert found
        for step in found:
            check(step, a, b, i, j)
            i += step is not Step.ONLY_B
            j += step is not Step.ONLY_A
        steps += found
    return steps + [Step.ONLY_A] * (len(a) - i) + [Step.ONLY_B] * (len(b) - j)


def check(step: Step, a: Sequence[Value], b: Sequence[Value], i: int, j: int) -> None:
    if step is Step.EQUAL:
        assert a[i] == b[j]
    elif step is Step.CHANGED:
        assert a[i] != b[j]
        assert a[i][0] == b[j][0]
    else:
        assert i < len(a) if step is Step.ONLY_A else j < len(b)


def fewest_changes(a: Sequence[Value], b: Sequence[Value]) -> int:
    """By the textbook's table of all prefixes."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row = row, [i]
        for j, other in enumerate(b, 1):
            ways = [before[j] + 1, row[-1] + 1]
            if one[0] == other[0]:
                ways.append(before[j - 1] + (one != other))
            row.append(min(ways))
    return row[-1]


values = st.tuples(st.integers(0, 2), st.integers(0, 2))


@given(st.lists(values, max_size=RUN - 1), st.lists(values, max_size=RUN - 1))
def test_few_messages_are_aligned_with_the_fewest_changes(a: list[Value], b: list[Value]) -> None:
    steps = steps_of(a, b)

    assert sum(step is not Step.EQUAL for step in steps) == fewest_changes(a, b)


@given(st.lists(values, max_size=60), st.lists(values, max_size=60))
def test_any_two_sequences_are_aligned_to_their_ends(a: list[Value], b: list[Value]) -> None:
    steps = steps_of(a, b)

    assert sum(step is not Step.ONLY_B for step in steps) == len(a)
    assert sum(step is not Step.ONLY_A for step in steps) == len(b)


@pytest.mark.parametrize("inserted", [1, MAX_CHANGES, MAX_CHANGES + 1, 1000])
@pytest.mark.parametrize("alike", [False, True])
def test_an_insertion_is_just_that(inserted: int, alike: bool) -> None:
    """Also where the inserted messages could be taken for versions of others."""
    common: list[Value] = [(0 if alike else number, number) for number in range(2100)]
    new: list[Value] = [(0 if alike else number, number) for number in range(3000, 3000 + inserted)]
    longer = common[:100] + new + common[100:]

    assert steps_of(common, longer) == [Step.EQUAL] * 100 + [Step.ONLY_B] * inserted + [Step.EQUAL] * 2000
    assert steps_of(longer, common) == [Step.EQUAL] * 100 + [Step.ONLY_A] * inserted + [Step.EQUAL] * 2000


def test_messages_that_all_have_other_values_are_changed() -> None:
    a: list[Value] = [(number % 3, number) for number in range(300)]
    b: list[Value] = [(number % 3, -number - 1) for number in range(300)]

    assert steps_of(a, b) == [Step.CHANGED] * 300


def test_a_change_every_few_messages_is_no_reason_to_lose_the_place() -> None:
    a: list[Value] = [(number % 7, number) for number in range(3000)]
    b: list[Value] = [(shape, -1 if value % 4 == 0 else value) for shape, value in a]

    assert steps_of(a, b).count(Step.CHANGED) == 750


def test_a_short_common_end_is_found_behind_many_changes() -> None:
    a = numbered([*range(100), 7, 7])
    b = numbered([*range(1000, 1100), 7, 7])

    assert steps_of(a, b)[-2:] == [Step.EQUAL] * 2


def test_what_has_nothing_in_common_has_no_alignment_within_what_is_held() -> None:
    a, b = numbered(range(500)), numbered(range(1000, 1500))

    assert align(Listed(a, 200), Listed(b, 200)) == []
    assert find_jump(Listed(a, 200), Listed(b, 200)) is None


def test_the_end_of_what_is_held_is_not_the_end() -> None:
    """Here the same messages come next in both; behind the end of the sequence they would be all that is left."""
    a, b = numbered([1, *range(10, 14)]), numbered([2, *range(10, 14), 99])

    steps = align(Listed(a), Listed(b, 5))

    assert steps == []


def test_where_one_is_broken_the_rest_of_the_other_does_not_matter() -> None:
    a, b = Listed(numbered([5, 3])), Listed(numbered([2, 3, *range(100, 200)]))
    a.broken = True

    assert sorted(step.name for step in align(a, b)) == ["EQUAL", "ONLY_A", "ONLY_B"]
    assert sorted(step.name for step in align(b, a)) == ["EQUAL", "ONLY_A", "ONLY_B"]


def test_a_jump_prefers_a_long_run_to_a_near_one() -> None:
    short, long = range(100, 100 + RUN), range(200, 300)
    a = numbered([0, *short, *range(300, 320), *long, 600])
    b = numbered([*range(400, 410), *short, *range(500, 505), *long, 700])

    assert find_jump(Listed(a), Listed(b)) == Jump(29, 23, 100)
