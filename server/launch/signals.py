"""Signals as things to read, together with who sent them."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from server.stop_signals import STOP_SIGNALS

PASSED_ON = (*STOP_SIGNALS, signal.SIGQUIT)
"""What is for QEMU: it may dump its core on SIGQUIT, where this process would leave it behind."""

_SI_KERNEL = 0x80
_SIGINFO = struct.Struct("=Iii116x")  # signalfd_siginfo (signalfd(2)): signo, errno, code, ... 128 bytes
_SIGSET_BYTES = 128  # sigset_t of the C library
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


class Signal(NamedTuple):
    """A signal that has come; ``by_key`` if the terminal sent it, because somebody pressed Ctrl-C or Ctrl-\\."""

    number: int
    by_key: bool


@contextmanager
def held_back(numbers: Collection[signal.Signals]) -> Iterator[SignalReader]:
    """Keep these signals from ending this process, to be read instead; not those that are ignored (nohup(1))."""
    waited = {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        fd = _signalfd(waited)
        try:
            yield SignalReader(fd, before)
        finally:
            os.close(fd)
    finally:
        while signal.sigtimedwait(waited, 0):
            pass  # what has come too late is not to end this process now
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalReader:
    """The signals that are held back. Made by :func:`held_back`."""

    def __init__(self, fd: int, mask: Iterable[int]) -> None:
        self._fd = fd
        self._mask = set(mask)

    async def next(self) -> Signal:
        """Wait for the next signal."""
        await trio.lowlevel.wait_readable(self._fd)
        number, _, code = _SIGINFO.unpack(os.read(self._fd, _SIGINFO.size))
        return Signal(number, code == _SI_KERNEL and number in (signal.SIGINT, signal.SIGQUIT))

    def release_in_child(self) -> None:
        """In a child: hold back only what this process had to, when it was started."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _signalfd(numbers: Collection[signal.Signals]) -> int:
    mask = ctypes.create_string_buffer(_SIGSET_BYTES)
    _libc.sigemptyset(mask)
    for number in numbers:
        _libc.sigaddset(mask, int(number))
    fd: int = _libc.signalfd(-1, mask, _SFD_FLAGS)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd
