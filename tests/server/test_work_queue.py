"""Deferred work: in order, one at a time, with pauses, messages, faults and an end."""

from __future__ import annotations

import errno
import gc
import itertools
import warnings
from collections.abc import Generator
from contextlib import suppress
from types import coroutine
from typing import Any, cast

import pytest

from devices.contract import GuestMemoryError
from devices.testing import FakeLog
from devices.work import ReadMessage, Request, WriteMessage, pause, read_message, write_message
from protocol import ProtocolError
from server.work_queue import MAX_DEFERRED, MessageRequest, WorkQueue

PLENTY_NS = 10**12


class Bench:
    """A work queue, what it asked the client for, and what the work noted."""

    def __init__(self) -> None:
        self.sent: list[MessageRequest] = []
        self.log = FakeLog()
        self.queue = WorkQueue(self.sent.append, self.log)
        self.notes: list[object] = []

    def run(self) -> None:
        self.queue.run(PLENTY_NS)

    async def note(self, what: object) -> None:
        self.notes.append(what)

    async def read(self, address: int, length: int = 4) -> None:
        try:
            self.notes.append(await read_message(address, length))
        except GuestMemoryError as error:
            self.notes.append(error.errno)

    async def pausing(self, name: str, pauses: int) -> None:
        for number in range(pauses):
            self.notes.append(f"{name}{number}")
            await pause()
        self.notes.append(f"{name} ends")


@pytest.fixture
def bench() -> Bench:
    return Bench()


@coroutine
def something_else() -> Generator[Request, Any, None]:
    """What an event loop's own awaitable does to a driver that is not the loop."""
    yield cast("Request", "a trap of some event loop")


def test_work_runs_in_the_order_in_which_it_was_deferred(bench: Bench) -> None:
    for number in range(5):
        bench.queue.defer(bench.note(number))
    assert bench.notes == []
    assert bench.queue.runnable
    bench.run()
    assert bench.notes == [0, 1, 2, 3, 4]
    assert not bench.queue.runnable


def test_work_that_pauses_is_finished_before_the_next_begins(bench: Bench) -> None:
    bench.queue.defer(bench.pausing("a", 2))
    bench.queue.defer(bench.pausing("b", 1))
    bench.run()
    assert bench.notes == ["a0", "a1", "a ends", "b0", "b ends"]


def test_work_that_work_defers_runs_after_what_was_deferred_before(bench: Bench) -> None:
    async def first() -> None:
        bench.queue.defer(bench.note("deferred by the first"))
        await pause()
        bench.notes.append("first")

    bench.queue.defer(first())
    bench.queue.defer(bench.note("second"))
    bench.run()
    assert bench.notes == ["first", "second", "deferred by the first"]


def test_running_with_nothing_to_do_does_nothing(bench: Bench) -> None:
    bench.run()
    assert not bench.queue.runnable
    assert not bench.queue.waiting


def test_a_spent_budget_ends_a_run_at_the_next_pause_and_keeps_the_rest(bench: Bench) -> None:
    bench.queue.defer(bench.pausing("a", 2))
    for expected in (["a0"], ["a0", "a1"], ["a0", "a1", "a ends"]):
        assert bench.queue.runnable
        bench.queue.run(0)
        assert bench.notes == expected
    assert not bench.queue.runnable


def test_a_budget_is_measured_by_the_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0, 10)
    monkeypatch.setattr("server.work_queue.time.monotonic_ns", lambda: next(ticks))
    bench.queue.defer(bench.pausing("a", 9))
    bench.queue.run(30)  # the deadline is 30; the clock says 10, 20, 30 after the first three steps
    assert bench.notes == ["a0", "a1", "a2"]


def test_a_message_suspends_the_work_until_the_answer_came(bench: Bench) -> None:
    bench.queue.defer(bench.read(0x1000, 4))
    bench.queue.defer(bench.note("next"))
    bench.run()
    assert bench.sent == [ReadMessage(0x1000, 4)]
    assert bench.queue.waiting
    assert not bench.queue.runnable
    bench.run()
    assert bench.notes == []
    assert bench.sent == [ReadMessage(0x1000, 4)]
    bench.queue.resume(b"data")
    assert bench.queue.runnable
    assert bench.notes == []
    bench.run()
    assert bench.notes == [b"data", "next"]
    assert not bench.queue.waiting


def test_an_answer_reaches_its_own_work_only_once(bench: Bench) -> None:
    bench.queue.defer(bench.read(0))
    bench.queue.defer(bench.read(8))
    bench.run()
    bench.queue.resume(b"one!")
    bench.run()
    bench.queue.resume(b"two!")
    bench.run()
    assert bench.notes == [b"one!", b"two!"]
    assert bench.sent == [ReadMessage(0, 4), ReadMessage(8, 4)]


def test_a_write_is_answered_with_nothing(bench: Bench) -> None:
    async def write() -> None:
        await write_message(0x20, b"abc")
        bench.notes.append("written")

    bench.queue.defer(write())
    bench.run()
    assert bench.sent == [WriteMessage(0x20, b"abc")]
    bench.queue.resume(None)
    bench.run()
    assert bench.notes == ["written"]


def test_a_client_that_answers_at_once_suspends_nothing() -> None:
    notes: list[bytes] = []

    async def read_twice() -> None:
        notes.append(await read_message(0, 1))
        notes.append(await read_message(1, 1))

    queue = WorkQueue(lambda _request: queue.resume(b"x"), FakeLog())
    queue.defer(read_twice())
    queue.run(PLENTY_NS)
    assert notes == [b"x", b"x"]


def test_a_refusal_reaches_the_work_as_a_guest_memory_error(bench: Bench) -> None:
    bench.queue.defer(bench.read(0))
    bench.queue.defer(bench.read(8))
    bench.run()
    bench.queue.fail(errno.EPERM, "not bus master")
    bench.run()
    assert bench.notes == [errno.EPERM]
    bench.queue.resume(b"fine")
    bench.run()
    assert bench.notes == [errno.EPERM, b"fine"]


def test_a_message_that_cannot_be_sent_fails_in_the_work_at_once(bench: Bench) -> None:
    queue = WorkQueue(lambda _request: queue.fail(errno.ENODEV, "no channel"), bench.log)
    queue.defer(bench.read(0))
    queue.defer(bench.note("next"))
    queue.run(PLENTY_NS)
    assert bench.notes == [errno.ENODEV, "next"]


def test_an_exception_is_logged_and_the_next_work_runs(bench: Bench) -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    bench.queue.defer(broken())
    bench.queue.defer(bench.note("next"))
    bench.run()
    assert bench.notes == ["next"]
    assert [(level, event) for level, event, _ in bench.log.events] == [("warning", "device_fault")]
    assert bench.log.events[0][2]["exc_info"]


def test_a_refusal_that_work_does_not_catch_is_logged_and_the_next_work_runs(bench: Bench) -> None:
    async def careless() -> None:
        await read_message(0, 4)

    bench.queue.defer(careless())
    bench.queue.defer(bench.note("next"))
    bench.run()
    bench.queue.fail(errno.EINVAL, "not mapped")
    bench.run()
    assert bench.notes == ["next"]
    assert [event for _, event, _ in bench.log.events] == ["device_fault"]


def test_awaiting_something_else_raises_in_the_work(bench: Bench) -> None:
    async def stray() -> None:
        try:
            await something_else()
        except GuestMemoryError as error:
            bench.notes.append(error.errno)

    bench.queue.defer(stray())
    bench.queue.defer(bench.note("next"))
    bench.run()
    assert bench.notes == [errno.EINVAL, "next"]
    assert bench.sent == []
    assert not bench.queue.waiting


def test_closing_throws_enodev_into_the_work_that_waits(bench: Bench) -> None:
    bench.queue.defer(bench.read(0))
    bench.run()
    bench.queue.close()
    assert bench.notes == [errno.ENODEV]
    assert not bench.queue.waiting
    assert not bench.queue.runnable


def test_closing_lets_work_clean_up_but_not_ask_again(bench: Bench) -> None:
    async def stubborn() -> None:
        try:
            await read_message(0, 4)
        except GuestMemoryError:
            try:
                await read_message(8, 4)
            finally:
                bench.notes.append("cleaned up")

    bench.queue.defer(stubborn())
    bench.run()
    bench.queue.close()
    assert bench.notes == ["cleaned up"]
    assert bench.sent == [ReadMessage(0, 4)]


def test_closing_survives_work_that_raises_then(bench: Bench) -> None:
    async def breaks() -> None:
        try:
            await read_message(0, 4)
        except GuestMemoryError as error:
            raise ZeroDivisionError from error

    bench.queue.defer(breaks())
    bench.run()
    bench.queue.close()
    assert not bench.queue.runnable


def test_closing_survives_work_that_does_not_end_when_told(bench: Bench) -> None:
    async def stubborn() -> None:
        for _ in range(2):
            with suppress(GuestMemoryError, GeneratorExit):
                await read_message(0, 4)
        await read_message(8, 4)

    bench.queue.defer(stubborn())
    bench.run()
    bench.queue.defer(bench.note("never"))
    bench.queue.close()
    assert not bench.queue.runnable
    assert bench.notes == []
    assert [event for _, event, _ in bench.log.events] == ["device_fault"]


def test_what_was_queued_or_comes_later_is_dropped_without_a_warning(bench: Bench) -> None:
    gc.collect()  # what other tests have left may warn as well
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench.queue.defer(bench.note("queued"))
        bench.queue.close()
        bench.queue.defer(bench.note("later"))
        gc.collect()
    assert caught == []
    bench.run()
    assert bench.notes == []
    assert not bench.queue.runnable


def test_what_is_over_the_bound_is_dropped_and_remembered(bench: Bench) -> None:
    bench.queue.defer(bench.read(0))
    bench.run()
    for number in range(MAX_DEFERRED):
        bench.queue.defer(bench.note(number))
    bench.queue.check()
    bench.queue.defer(bench.note("too many"))
    bench.queue.resume(b"read")
    bench.run()
    assert bench.notes == [b"read", *range(MAX_DEFERRED)]
    with pytest.raises(ProtocolError) as error:
        bench.queue.check()
    assert error.value.errno == errno.ENOBUFS


def test_work_that_may_be_dropped_is_refused_over_the_bound_and_nothing_is_remembered(bench: Bench) -> None:
    bench.queue.defer(bench.read(0))
    bench.run()
    for number in range(MAX_DEFERRED - 1):
        bench.queue.defer(bench.note(number))
    assert bench.queue.offer(bench.note("the last"))
    assert not bench.queue.offer(bench.note("too many"))
    bench.queue.check()
    bench.queue.resume(b"read")
    bench.run()
    assert bench.notes == [b"read", *range(MAX_DEFERRED - 1), "the last"]
    bench.queue.close()
    assert not bench.queue.offer(bench.note("too late"))


def test_work_is_withdrawn_until_it_has_begun(bench: Bench) -> None:
    begun, waiting = bench.read(0), bench.read(8)
    bench.queue.defer(begun)
    bench.queue.defer(waiting)
    bench.run()
    for work in (begun, waiting, waiting):
        bench.queue.withdraw(work)
    bench.queue.resume(b"read")
    bench.run()
    assert bench.notes == [b"read"]
    assert not bench.queue.runnable
    assert not bench.queue.waiting


def test_closing_twice_is_closing_once(bench: Bench) -> None:
    bench.queue.defer(bench.read(0))
    bench.run()
    bench.queue.close()
    bench.queue.close()
    assert bench.notes == [errno.ENODEV]
