"""Callbacks that raise: C gets -1 and errno, and nothing is lost."""

from __future__ import annotations

import ctypes
import errno

import pytest

from server.libvfio_user.constants import Quiesce
from server.libvfio_user.guard import Guard


class Failures:
    """What was reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Exception]] = []

    def __call__(self, command: str, error: Exception) -> int:
        self.seen.append((command, error))
        return errno.ENXIO


def call(guard: Guard, function: object) -> tuple[int, int]:
    """Call through C and back; returns the result and errno."""
    callback = Quiesce(guard("QUIESCE", function))  # type: ignore[arg-type]
    ctypes.set_errno(0)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    by_address = Quiesce(address)
    return by_address(None), ctypes.get_errno()


def raising(error: BaseException) -> object:
    def function(_context: object) -> int:
        raise error

    return function


def test_what_a_callback_returns_is_what_c_gets() -> None:
    assert call(Guard(Failures()), lambda _context: 7)[0] == 7


def test_an_exception_is_minus_one_and_the_errno_that_it_was_reported_for() -> None:
    failures = Failures()
    error = KeyError("broken")
    assert call(Guard(failures), raising(error)) == (-1, errno.ENXIO)
    assert failures.seen == [("QUIESCE", error)]


def test_an_interrupt_is_raised_again_once_c_has_returned_and_once_only() -> None:
    guard = Guard(Failures())
    assert call(guard, raising(KeyboardInterrupt())) == (-1, errno.EINTR)
    with pytest.raises(KeyboardInterrupt):
        guard.raise_escaped()
    guard.raise_escaped()


def test_nothing_is_called_once_it_is_closed() -> None:
    failures = Failures()
    guard = Guard(failures)
    guard.closed = True
    assert call(guard, raising(KeyError()))[0] == 0
    assert failures.seen == []
