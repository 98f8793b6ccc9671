"""Deferred work: in order, one at a time, suspended on messages, and dropped when the client is gone."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import suppress
from types import coroutine
from typing import Any

import pytest

from devices import work
from devices.contract import GuestMemoryError
from devices.testing import FakeLog
from devices.work import ReadMessage, WriteMessage
from server.work_queue import MessageRequest, WorkQueue

LONG = 10**12


class Queue(WorkQueue):
    """A queue that keeps the messages it would send."""

    def __init__(self) -> None:
        self.sent: list[MessageRequest] = []
        self.log = FakeLog()
        super().__init__(self.sent.append, self.log)

    @property
    def faults(self) -> int:
        return sum(event == "device_fault" for _, event, _ in self.log.events)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def steps() -> list[object]:
    return []


async def note(steps: list[object], what: object) -> None:
    steps.append(what)


async def read(steps: list[object], address: int) -> None:
    try:
        steps.append(await work.read_message(address, 4))
    except GuestMemoryError as error:
        steps.append(error.errno)


@coroutine
def nonsense() -> Generator[Any, Any, None]:
    yield "nonsense"


def test_work_does_not_run_before_it_is_run(queue: Queue, steps: list[object]) -> None:
    queue.defer(note(steps, 1))
    assert steps == []
    assert queue.runnable
    queue.run(LONG)
    assert steps == [1]
    assert not queue.runnable


def test_work_runs_in_order(queue: Queue, steps: list[object]) -> None:
    for number in range(5):
        queue.defer(note(steps, number))
    queue.run(LONG)
    assert steps == [0, 1, 2, 3, 4]


def test_work_that_waits_for_a_message_lets_nothing_overtake_it(queue: Queue, steps: list[object]) -> None:
    queue.defer(read(steps, 0x1000))
    queue.defer(note(steps, "second"))
    queue.run(LONG)
    assert queue.sent == [ReadMessage(0x1000, 4)]
    assert queue.waiting
    assert not queue.runnable
    queue.run(LONG)
    assert steps == []
    queue.resume(b"data")
    assert queue.runnable
    queue.run(LONG)
    assert steps == [b"data", "second"]


def test_a_write_is_answered_with_none(queue: Queue, steps: list[object]) -> None:
    async def write() -> None:
        await work.write_message(0x2000, b"data")
        steps.append("written")

    queue.defer(write())
    queue.run(LONG)
    assert queue.sent == [WriteMessage(0x2000, b"data")]
    queue.resume(None)
    queue.run(LONG)
    assert steps == ["written"]


def test_a_refusal_is_an_error_where_the_work_waits(queue: Queue, steps: list[object]) -> None:
    queue.defer(read(steps, 0))
    queue.run(LONG)
    queue.fail(errno.EPERM, "the client refused")
    queue.run(LONG)
    assert steps == [errno.EPERM]
    assert queue.faults == 0


def test_an_error_is_given_to_one_piece_of_work_only(queue: Queue, steps: list[object]) -> None:
    queue.defer(read(steps, 0))
    queue.defer(read(steps, 1))
    queue.run(LONG)
    queue.fail(errno.EPERM, "the client refused")
    queue.run(LONG)
    queue.resume(b"good")
    queue.run(LONG)
    assert steps == [errno.EPERM, b"good"]


def test_a_send_that_fails_at_once_is_an_error_where_the_work_waits(steps: list[object]) -> None:
    def send(_request: MessageRequest) -> None:
        closed.fail(errno.ENODEV, "no channel")

    closed = WorkQueue(send, FakeLog())
    closed.defer(read(steps, 0))
    closed.defer(note(steps, "next"))
    closed.run(LONG)
    assert steps == [errno.ENODEV, "next"]


def test_work_gives_way_at_a_pause_when_its_time_is_up(queue: Queue, steps: list[object]) -> None:
    async def long() -> None:
        for number in range(3):
            steps.append(number)
            await work.pause()

    queue.defer(long())
    queue.run(0)
    assert steps == [0]
    assert queue.runnable
    queue.run(0)
    assert steps == [0, 1]
    queue.run(LONG)
    assert steps == [0, 1, 2]


def test_a_fault_is_logged_and_the_next_work_runs(queue: Queue, steps: list[object]) -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    queue.defer(broken())
    queue.defer(note(steps, "next"))
    queue.run(LONG)
    assert steps == ["next"]
    assert queue.faults == 1


def test_work_that_awaits_something_else_is_told_so(queue: Queue, steps: list[object]) -> None:
    async def confused() -> None:
        try:
            await nonsense()
        except GuestMemoryError as error:
            steps.append(error.errno)

    queue.defer(confused())
    queue.run(LONG)
    assert steps == [errno.EINVAL]


def test_work_may_defer_more_work(queue: Queue, steps: list[object]) -> None:
    async def first() -> None:
        queue.defer(note(steps, "later"))
        steps.append("first")

    queue.defer(first())
    queue.run(LONG)
    assert steps == ["first", "later"]


def test_closing_tells_the_work_that_waits_and_drops_the_rest(queue: Queue, steps: list[object]) -> None:
    queue.defer(read(steps, 0))
    queue.defer(note(steps, "never"))
    queue.run(LONG)
    queue.close()
    assert steps == [errno.ENODEV]
    queue.defer(note(steps, "never"))
    queue.run(LONG)
    assert steps == [errno.ENODEV]
    assert not queue.runnable


def test_closing_does_not_let_work_ask_again(queue: Queue, steps: list[object]) -> None:
    async def insistent() -> None:
        try:
            while True:
                await read(steps, 0)
        finally:
            steps.append("closed")

    queue.defer(insistent())
    queue.run(LONG)
    queue.close()
    assert len(queue.sent) == 1
    assert steps == [errno.ENODEV, "closed"]


def test_closing_survives_work_that_will_not_end(queue: Queue) -> None:
    async def stubborn() -> None:
        with suppress(GuestMemoryError):
            await work.read_message(0, 4)
        with suppress(GeneratorExit):
            await work.read_message(0, 4)
        await work.read_message(0, 4)

    queue.defer(stubborn())
    queue.run(LONG)
    queue.close()
    assert queue.faults == 1


def test_closing_twice_does_nothing(queue: Queue) -> None:
    queue.close()
    queue.close()
