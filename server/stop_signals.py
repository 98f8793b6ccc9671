"""The signals that ask a command to end."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, kill(1) and the end of the terminal. SIGQUIT is not among them: it is for who wants a core dump."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that end a server: all, but not the end of the terminal where that is ignored (nohup(1))."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if number is not signal.SIGHUP or not ignored)
