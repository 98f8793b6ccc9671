"""Callbacks that raise, as C sees them: the result, and the errno of the C library itself."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import Any

import pytest

from server.libvfio_user.constants import DmaUnregister, Quiesce
from server.libvfio_user.guard import Guard
from tests.server.libvfio_user.compiled import SOURCES, compile_c


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output = tmp_path_factory.mktemp("caller") / "errno_caller.so"
    return ctypes.CDLL(str(compile_c(SOURCES / "errno_caller.c", output, "-shared", "-fPIC")))


def reported(code: int) -> Guard:
    """A guard whose reports have ``code`` for every error."""
    return Guard(lambda _command, _error: code)


def raising(error: BaseException) -> Callable[..., int]:
    def function(*_arguments: Any) -> int:
        raise error

    return function


@pytest.mark.parametrize("code", [errno.EIO, errno.EBUSY, errno.EINVAL, errno.EFAULT])
def test_c_finds_the_errno_that_the_error_was_reported_for(caller: ctypes.CDLL, code: int) -> None:
    callback = Quiesce(reported(code)("QUIESCE", raising(RuntimeError())))
    assert caller.result_of(callback) == -1
    assert caller.errno_of(callback) == code


def test_c_gets_the_result_of_a_callback_that_does_not_raise(caller: ctypes.CDLL) -> None:
    callback = Quiesce(reported(errno.EIO)("QUIESCE", lambda _context: 7))
    assert caller.result_of(callback) == 7
    assert caller.errno_of(callback) == 0


def test_each_failure_has_its_own_errno_however_many_there_are(caller: ctypes.CDLL) -> None:
    codes = iter([errno.EIO, errno.EPERM, errno.ENOENT])
    guard = Guard(lambda _command, _error: next(codes))
    code = ctypes.c_int()
    callback = Quiesce(guard("QUIESCE", raising(ValueError())))
    assert caller.failures_of(callback, 3, ctypes.byref(code)) == 3
    assert code.value == errno.ENOENT


def test_an_interrupt_is_kept_from_c_and_raised_again_afterwards(caller: ctypes.CDLL) -> None:
    guard = reported(errno.EIO)
    callback = Quiesce(guard("QUIESCE", raising(KeyboardInterrupt("now"))))
    assert caller.errno_of(callback) == errno.EINTR
    with pytest.raises(KeyboardInterrupt, match="now"):
        guard.raise_escaped()


def test_a_callback_without_a_result_may_raise_as_well(caller: ctypes.CDLL) -> None:
    callback = DmaUnregister(reported(errno.ENOMEM)("DMA_UNMAP", raising(MemoryError())))
    assert caller.errno_after(callback) == errno.ENOMEM


def test_once_closed_nothing_is_called_and_c_is_told_of_success(caller: ctypes.CDLL) -> None:
    called: list[object] = []
    guard = reported(errno.EIO)
    callback = Quiesce(guard("QUIESCE", lambda context: called.append(context)))
    guard.closed = True
    assert caller.result_of(callback) == 0
    assert called == []


def test_the_name_of_what_failed_may_depend_on_the_arguments(caller: ctypes.CDLL) -> None:
    seen: list[str] = []

    def failed(command: str, _error: Exception) -> int:
        seen.append(command)
        return errno.EIO

    callback = Quiesce(Guard(failed)(lambda context: f"context {context}", raising(KeyError())))
    assert caller.errno_of(callback) == errno.EIO
    assert seen == ["context None"]
