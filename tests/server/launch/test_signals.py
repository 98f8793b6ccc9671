"""Signals that are read."""

import os
import signal
import threading

import pytest
import trio

from server.launch.signals import Signal, held_back
from tests.fds import open_fds

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def send(number: signal.Signals) -> None:
    """To this thread, which holds it back; others of this process may not."""
    signal.pthread_kill(threading.get_ident(), number)


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_signal_is_read_and_known_to_come_from_a_program(number: signal.Signals) -> None:
    with held_back(NUMBERS) as signals:
        send(number)
        assert await signals.next() == Signal(number, by_key=False)


async def test_whoever_waits_is_woken_by_a_signal() -> None:
    read = []
    with held_back(NUMBERS) as signals:

        async def wait() -> None:
            read.append(await signals.next())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            send(signal.SIGTERM)
    assert read == [Signal(signal.SIGTERM, by_key=False)]


def test_what_nobody_has_read_ends_nobody_later() -> None:
    before, fds = signal.pthread_sigmask(signal.SIG_BLOCK, ()), open_fds()
    late: list[int] = []
    handlers = [signal.signal(number, lambda number, _: late.append(number)) for number in NUMBERS]
    with held_back(NUMBERS):
        send(signal.SIGTERM)
        send(signal.SIGHUP)
    for number, handler in zip(NUMBERS, handlers, strict=True):
        signal.signal(number, handler)
    assert late == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.sigpending() == set()
    assert open_fds() == fds


def test_a_signal_that_is_ignored_is_not_held_back() -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_back(NUMBERS):
            assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_child_holds_back_what_its_parent_had_to() -> None:
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with held_back(NUMBERS) as signals:
            if (child := os.fork()) == 0:
                signals.release_in_child()
                mask = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
                os.write(writing, repr([int(number) for number in mask]).encode())
                os._exit(0)
            os.waitpid(child, 0)
        assert os.read(reading, 100) == repr([int(signal.SIGUSR1)]).encode()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.close(reading)
        os.close(writing)
