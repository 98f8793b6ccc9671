"""Waiting for fds where trio does not run."""

from __future__ import annotations

import select


def readable(fds: list[int], seconds: float) -> list[int]:
    """Those of the fds that are readable, after as many seconds at most, empty where none is by then."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(seconds * 1000)]
