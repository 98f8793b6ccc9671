"""How one sequence of messages becomes another, a difference at a time, looking no further ahead than it must.

From the first difference on, all ways of going on are followed at once, by how many changes they take: a message is
only in one of the two, or is in both with other values (Myers, *An O(ND) Difference Algorithm*, 1986, with changed
messages as a third kind of step). The first way that comes to a run of equal messages is taken. Where none does within
MAX_CHANGES, a run is looked for in all that may be held of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol, TypeAlias

from server.trace.diff.meaning import Meaning

RUN: Final = 8
"""Equal messages in a row by which both sequences are said to be at the same place again."""
MAX_CHANGES: Final = 64
"""Changes of one difference that are found exactly; the time for them grows with their square."""


class Step(Enum):
    """What to do with the next message, or with the next of both."""

    EQUAL = auto()
    CHANGED = auto()
    ONLY_A = auto()
    ONLY_B = auto()


class Window(Protocol):
    """The messages ahead, as many as may be held."""

    def at(self, index: int) -> Meaning | None:
        """The one ``index`` messages ahead; None behind the end of the sequence or of what may be held."""

    @property
    def broken(self) -> bool:
        """Whether what follows the last message is not known, so that nothing behind its place matters."""

    def ends_at(self, index: int) -> bool:
        """Whether the sequence has exactly ``index`` messages more."""

    def all(self) -> Sequence[Meaning]:
        """All that may be held."""


class _State(NamedTuple):
    """The furthest that a diagonal gets: into A where the step ends, and behind the equal messages that follow."""

    step: Step | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Jump:
    """Skip ``a`` messages of A, and ``b`` of B: behind them is a run of ``run`` equal ones."""

    a: int
    b: int
    run: int

    @property
    def rate(self) -> float:
        """Changes per message."""
        return (self.a + self.b) / (self.a + self.b + 2 * self.run)


_Round: TypeAlias = dict[int, _State]


def align(a: Window, b: Window) -> list[Step]:
    """The next steps, where the first messages ahead differ; none where there is no way within what may be held."""
    rounds: list[_Round] = [{0: _State(None, 0, _slide(a, b, 0, 0))}]
    while len(rounds) <= MAX_CHANGES:
        states = _extend(a, b, rounds[-1])
        if not states:
            break
        rounds.append(states)
        found = _arrived(a, b, states)
        if found is not None:
            return _steps(rounds, found)
    return _far(a, b, rounds)


def _slide(a: Window, b: Window, i: int, j: int) -> int:
    """Where the equal messages from ``i`` and ``j`` on end in A."""
    while (one := a.at(i)) is not None and (other := b.at(j)) is not None and one.same(other):
        i += 1
        j += 1
    return i


def _extend(a: Window, b: Window, before: _Round) -> _Round:
    """Each diagonal (a place in A less that in B) with one change more."""
    after: _Round = {}
    for diagonal in range(min(before) - 1, max(before) + 2):
        ways = list(_ways(a, b, before, diagonal))
        if ways:
            start, step = max(ways, key=_end_of_way)
            after[diagonal] = _State(step, start, _slide(a, b, start, start - diagonal))
    return after


def _ways(a: Window, b: Window, before: _Round, diagonal: int) -> Iterator[tuple[int, Step]]:
    """Where one step leads to in A, from what is reached on this diagonal and those beside it."""
    same, left, right = before.get(diagonal), before.get(diagonal - 1), before.get(diagonal + 1)
    if same is not None and _versions(a.at(same.end), b.at(same.end - diagonal)):
        yield same.end + 1, Step.CHANGED
    if left is not None and a.at(left.end) is not None:
        yield left.end + 1, Step.ONLY_A
    if right is not None and b.at(right.end - diagonal - 1) is not None:
        yield right.end, Step.ONLY_B


def _versions(one: Meaning | None, other: Meaning | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def _arrived(a: Window, b: Window, states: _Round) -> int | None:
    """The diagonal that is at the same place in both again, with the longest run of those that are."""
    there = [
        (end - start, diagonal)
        for diagonal, (_, start, end) in states.items()
        if end - start >= RUN or _at_end(a, b, end, end - diagonal)
    ]
    return max(there)[1] if there else None


def _at_end(a: Window, b: Window, i: int, j: int) -> bool:
    if a.ends_at(i):
        return a.broken or b.ends_at(j)
    return b.broken and b.ends_at(j)


def _steps(rounds: list[_Round], diagonal: int) -> list[Step]:
    """The way to the end of ``diagonal`` in the last round."""
    steps: list[Step] = []
    for states in reversed(rounds):
        step, start, end = states[diagonal]
        steps.extend([Step.EQUAL] * (end - start))
        if step is not None:
            steps.append(step)
        diagonal += {Step.ONLY_A: -1, Step.ONLY_B: 1}.get(step or Step.EQUAL, 0)
    return steps[::-1]


def _far(a: Window, b: Window, rounds: list[_Round]) -> list[Step]:
    """Of the way that got furthest, and a jump: what has fewer changes for the messages that it passes."""
    states = rounds[-1]
    diagonal = max(states, key=lambda one: 2 * states[one].end - one)
    i = states[diagonal].end
    j = i - diagonal
    changes = len(rounds) - 1
    jump = find_jump(a, b)
    if min(i, j) >= max(changes, 1) and (jump is None or changes / (i + j) <= jump.rate):
        return _trimmed(_steps(rounds, diagonal))
    if jump is None:
        return []
    return [Step.ONLY_A] * jump.a + [Step.ONLY_B] * jump.b


def _end_of_way(way: tuple[int, Step]) -> int:
    return way[0]


def _trimmed(steps: list[Step]) -> list[Step]:
    """Without the messages at the end that are only in one, since the others of the other are yet to come."""
    last = max(place for place, step in enumerate(steps) if step in (Step.EQUAL, Step.CHANGED))
    return steps[: last + 1]


def find_jump(a: Window, b: Window) -> Jump | None:
    """The run, in what may be held of both, to which the fewest changes lead for its length."""
    ours, theirs = [one.digest for one in a.all()], [one.digest for one in b.all()]
    places = run_places(theirs, RUN)
    best = _common_end(a, b, ours, theirs)
    i = 0
    while i + RUN <= len(ours):
        j = places.get(tuple(ours[i : i + RUN]))
        if j is None:
            i += 1
            continue
        run = RUN
        while i + run < len(ours) and j + run < len(theirs) and ours[i + run] == theirs[j + run]:
            run += 1
        if best is None or Jump(i, j, run).rate < best.rate:
            best = Jump(i, j, run)
        i += run
    return best


def run_places(digests: Sequence[int], length: int) -> dict[tuple[int, ...], int]:
    """Where each run of ``length`` messages is first."""
    places: dict[tuple[int, ...], int] = {}
    for place in range(len(digests) - length + 1):
        places.setdefault(tuple(digests[place : place + length]), place)
    return places


def _common_end(a: Window, b: Window, ours: list[int], theirs: list[int]) -> Jump | None:
    """The run at the end of both sequences, where that is near, however short it is."""
    if not (a.ends_at(len(ours)) and b.ends_at(len(theirs))):
        return None
    run = 0
    while run < min(len(ours), len(theirs)) and ours[-1 - run] == theirs[-1 - run]:
        run += 1
    return Jump(len(ours) - run, len(theirs) - run, run) if run else None
