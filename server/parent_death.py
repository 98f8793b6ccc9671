"""Children that the kernel ends when the process is gone that started them."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """In a child: get a signal when the process ``parent`` ends, also if it just has (PR_SET_PDEATHSIG(2const)).

    The kernel sends it when the *thread* of ``parent`` ends that has started the child.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(128 + number)
