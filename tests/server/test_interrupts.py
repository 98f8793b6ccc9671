"""SET_IRQS in all combinations, and what reaches the client's eventfds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from devices.contract import Irq
from protocol import IrqAction, IrqData, ProtocolError, SetIrqs
from server.fds import ReceivedFds
from server.interrupts import Interrupts
from tests.fds import open_fds

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

IRQS = (
    Irq("INTX", 1, maskable=True, automasked=True),
    Irq("MSI"),
    Irq("MSIX", 8, maskable=True),
    Irq("ERR", 1),
)
INTX, MSI, MSIX, ERR = range(4)
TRIGGER, MASK, UNMASK = IrqAction.TRIGGER, IrqAction.MASK, IrqAction.UNMASK
FULL = 2**64 - 2
"""The largest value of an eventfd's counter (eventfd(2))."""


class Lines:
    """Interrupts and the eventfds of their client."""

    def __init__(self) -> None:
        self.interrupts = Interrupts(IRQS)
        self._events: list[int] = []

    def event(self, flags: int = os.EFD_NONBLOCK) -> int:
        self._events.append(os.eventfd(0, flags | os.EFD_CLOEXEC))
        return self._events[-1]

    def set(
        self, index: int, action: IrqAction, data: IrqData, *fds: int, start: int = 0, count: int = 1
    ) -> None:
        with ReceivedFds([os.dup(fd) for fd in fds]) as received:
            self.interrupts.set_irqs(SetIrqs(index, start, count, data, action), received)

    def choose(self, index: int, action: IrqAction, *bools: bool, start: int = 0) -> None:
        request = SetIrqs(index, start, len(bools), IrqData.BOOL, action, bools)
        self.interrupts.set_irqs(request, ReceivedFds())

    def assign(
        self, index: int, vectors: int = 1, *, action: IrqAction = TRIGGER, start: int = 0
    ) -> list[int]:
        events = [self.event() for _ in range(vectors)]
        self.set(index, action, IrqData.EVENTFD, *events, start=start, count=vectors)
        return events

    def close(self) -> None:
        self.interrupts.close()
        for fd in self._events:
            os.close(fd)


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


def count(event: int) -> int:
    """How often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(event)
    except BlockingIOError:
        return 0


def refusal(lines: Lines, request: SetIrqs, *fds: int) -> int:
    with ReceivedFds([os.dup(fd) for fd in fds]) as received, pytest.raises(ProtocolError) as error:
        lines.interrupts.set_irqs(request, received)
    return error.value.errno


def test_a_raised_vector_signals_its_own_eventfd(lines: Lines) -> None:
    events = lines.assign(MSIX, 8)
    lines.interrupts.trigger(MSIX, 3)
    lines.interrupts.trigger(MSIX, 3)
    lines.interrupts.trigger(MSIX, 7)
    assert [count(event) for event in events] == [0, 0, 0, 2, 0, 0, 0, 1]
    assert lines.interrupts.raised == 3


def test_a_vector_without_eventfd_is_raised_in_vain(lines: Lines) -> None:
    lines.interrupts.trigger(MSIX, 0)
    (event,) = lines.assign(MSIX)
    assert count(event) == 0
    assert lines.interrupts.raised == 0


def test_eventfds_are_assigned_to_a_range_and_leave_the_others(lines: Lines) -> None:
    old = lines.assign(MSIX, 4)
    new = lines.assign(MSIX, 2, start=1)
    for vector in range(4):
        lines.interrupts.trigger(MSIX, vector)
    assert [count(event) for event in old] == [1, 0, 0, 1]
    assert [count(event) for event in new] == [1, 1]


def test_no_eventfds_for_a_range_disconnect_it(lines: Lines) -> None:
    events = lines.assign(MSIX, 4)
    before = open_fds()
    lines.set(MSIX, TRIGGER, IrqData.EVENTFD, start=1, count=2)
    assert open_fds() == before - 2
    for vector in range(4):
        lines.interrupts.trigger(MSIX, vector)
    assert [count(event) for event in events] == [1, 0, 0, 1]


def test_a_client_may_raise_a_range_itself(lines: Lines) -> None:
    events = lines.assign(MSIX, 4)
    lines.set(MSIX, TRIGGER, IrqData.NONE, start=1, count=2)
    assert [count(event) for event in events] == [0, 1, 1, 0]


def test_a_client_may_raise_chosen_vectors(lines: Lines) -> None:
    events = lines.assign(MSIX, 4)
    lines.choose(MSIX, TRIGGER, True, False, True, start=1)
    assert [count(event) for event in events] == [0, 1, 0, 1]


def test_a_masked_vector_is_delivered_once_when_it_is_unmasked(lines: Lines) -> None:
    events = lines.assign(MSIX, 2)
    lines.set(MSIX, MASK, IrqData.NONE)
    for _ in range(3):
        lines.interrupts.trigger(MSIX, 0)
        lines.interrupts.trigger(MSIX, 1)
    assert [count(event) for event in events] == [0, 3]
    lines.set(MSIX, UNMASK, IrqData.NONE)
    assert [count(event) for event in events] == [1, 0]
    lines.set(MSIX, UNMASK, IrqData.NONE)
    assert [count(event) for event in events] == [0, 0]


def test_chosen_vectors_are_masked_and_unmasked(lines: Lines) -> None:
    events = lines.assign(MSIX, 3)
    lines.choose(MSIX, MASK, True, False, True)
    lines.set(MSIX, TRIGGER, IrqData.NONE, count=3)
    assert [count(event) for event in events] == [0, 1, 0]
    lines.choose(MSIX, UNMASK, False, True, True)
    assert [count(event) for event in events] == [0, 0, 1]


def test_an_automasked_line_is_masked_by_its_own_interrupt(lines: Lines) -> None:
    (event,) = lines.assign(INTX)
    lines.interrupts.trigger(INTX, 0)
    lines.interrupts.trigger(INTX, 0)
    assert count(event) == 1
    lines.set(INTX, UNMASK, IrqData.NONE)
    assert count(event) == 1
    lines.set(INTX, UNMASK, IrqData.NONE)
    assert count(event) == 0


def test_mask_and_unmask_signal_the_eventfds_for_them(lines: Lines) -> None:
    (masked,) = lines.assign(INTX, action=MASK)
    (unmasked,) = lines.assign(INTX, action=UNMASK)
    lines.set(INTX, MASK, IrqData.NONE)
    assert (count(masked), count(unmasked)) == (1, 0)
    lines.choose(INTX, UNMASK, True)
    assert (count(masked), count(unmasked)) == (0, 1)


@pytest.mark.parametrize("index", [INTX, MSI, MSIX, ERR])
def test_no_vectors_switch_a_whole_index_off(lines: Lines, index: int) -> None:
    before = open_fds()
    events = lines.assign(index, IRQS[index].count) if IRQS[index].count else []
    lines.set(index, TRIGGER, IrqData.NONE, count=0)
    assert open_fds() == before + len(events)
    for vector in range(len(events)):
        lines.interrupts.trigger(index, vector)
    assert not any(count(event) for event in events)


def test_switching_off_forgets_masks_and_what_was_pending(lines: Lines) -> None:
    lines.assign(INTX)
    lines.set(INTX, MASK, IrqData.NONE)
    lines.interrupts.trigger(INTX, 0)
    lines.set(INTX, TRIGGER, IrqData.NONE, count=0)
    (event,) = lines.assign(INTX)
    assert count(event) == 0
    lines.interrupts.trigger(INTX, 0)
    assert count(event) == 1


@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_masking_no_vectors_is_refused_and_switches_nothing_off(lines: Lines, action: IrqAction) -> None:
    (event,) = lines.assign(MSIX)
    assert refusal(lines, SetIrqs(MSIX, 0, 0, IrqData.NONE, action)) == errno.EINVAL
    lines.interrupts.trigger(MSIX, 0)
    assert count(event) == 1


@pytest.mark.parametrize(
    ("index", "start", "number"),
    [(MSIX, 0, 9), (MSIX, 8, 1), (MSIX, 7, 2), (INTX, 1, 1), (MSI, 0, 1), (4, 0, 1), (2**32 - 1, 0, 1)],
)
@pytest.mark.parametrize("data", [IrqData.NONE, IrqData.BOOL, IrqData.EVENTFD])
def test_vectors_that_do_not_exist_are_refused(
    lines: Lines, index: int, start: int, number: int, data: IrqData
) -> None:
    bools = (True,) * number if data is IrqData.BOOL else ()
    fds = [lines.event()] * number if data is IrqData.EVENTFD else []
    assert refusal(lines, SetIrqs(index, start, number, data, TRIGGER, bools), *fds) == errno.EINVAL


@pytest.mark.parametrize("action", [MASK, UNMASK])
@pytest.mark.parametrize("data", [IrqData.NONE, IrqData.EVENTFD])
def test_what_cannot_be_masked_is_not(lines: Lines, action: IrqAction, data: IrqData) -> None:
    fds = [lines.event()] if data is IrqData.EVENTFD else []
    assert refusal(lines, SetIrqs(ERR, 0, 1, data, action), *fds) == errno.EINVAL


@pytest.mark.parametrize("number", [1, 2, 4, 16])
def test_a_number_of_eventfds_that_is_not_the_number_of_vectors_is_refused(lines: Lines, number: int) -> None:
    request = SetIrqs(MSIX, 0, 3, IrqData.EVENTFD, TRIGGER)
    assert refusal(lines, request, *[lines.event()] * number) == errno.EINVAL


@pytest.mark.parametrize("data", [IrqData.NONE, IrqData.BOOL])
def test_fds_without_a_place_are_refused(lines: Lines, data: IrqData) -> None:
    bools = (True,) if data is IrqData.BOOL else ()
    assert refusal(lines, SetIrqs(MSIX, 0, 1, data, TRIGGER, bools), lines.event()) == errno.EINVAL


def test_a_pipe_in_place_of_an_eventfd_is_refused_and_changes_nothing(lines: Lines) -> None:
    (old, _) = lines.assign(MSIX, 2)
    reader, writer = os.pipe()
    request = SetIrqs(MSIX, 0, 2, IrqData.EVENTFD, TRIGGER)
    assert refusal(lines, request, lines.event(), writer) == errno.EINVAL
    assert refusal(lines, request, reader, lines.event()) == errno.EINVAL
    os.close(reader)
    os.close(writer)
    lines.interrupts.trigger(MSIX, 0)
    assert count(old) == 1


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE])
def test_an_eventfd_that_is_full_does_not_block(lines: Lines, flags: int) -> None:
    event = lines.event(flags)
    lines.set(MSIX, TRIGGER, IrqData.EVENTFD, event)
    os.eventfd_write(event, FULL)
    lines.interrupts.trigger(MSIX, 0)
    assert os.eventfd_read(event) in (1, FULL)


def test_an_eventfd_that_its_client_makes_blocking_later_does_not_block(lines: Lines) -> None:
    (event,) = lines.assign(MSIX)
    os.set_blocking(event, True)
    os.eventfd_write(event, FULL)
    lines.interrupts.trigger(MSIX, 0)
    assert os.eventfd_read(event) == FULL


def test_an_eventfd_that_its_client_closed_is_signalled_in_vain(lines: Lines) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    lines.set(MSIX, TRIGGER, IrqData.EVENTFD, event)
    os.close(event)
    lines.interrupts.trigger(MSIX, 0)


def test_closing_twice_closes_once(lines: Lines) -> None:
    before = open_fds()
    lines.assign(MSIX, 8)
    lines.interrupts.close()
    lines.interrupts.close()
    assert open_fds() == before + 8
