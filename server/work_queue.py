"""Deferred work of a device, driven in order, without an event loop of its own.

The coroutines come from devices (:mod:`devices.work`): they suspend only to ask for a message to the client, or to
offer a pause. So the session steps them itself, inside whatever task or C callback is at hand, and a virtqueue kick
costs no task switch.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from devices.contract import GuestMemoryError, Log, Work
from devices.work import Pause, ReadMessage, WriteMessage
from protocol import ProtocolError
from server.durations import WorkTimings

MessageRequest = ReadMessage | WriteMessage

MAX_DEFERRED = 16_384
"""Pieces of work that may wait: more than the register accesses of one read can defer, and 8 MiB of coroutines."""


class WorkQueue:
    """Runs one piece of work at a time; what is deferred meanwhile waits its turn."""

    def __init__(self, send: Callable[[MessageRequest], None], log: Log) -> None:
        """``send`` asks the client; the reply comes back by :meth:`resume` or :meth:`fail`."""
        self._send = send
        self._log = log
        self._queue: deque[Work] = deque()
        self._current: Work | None = None
        self._answer: bytes | None = None
        self._error: GuestMemoryError | None = None
        self._waiting = False
        self._closed = False
        self.overflowed = False
        """Whether work was lost because too much was waiting: the session cannot go on."""
        self.timings: WorkTimings | None = None
        """Told how long runs and messages take, if anybody."""
        self._asked = 0

    @property
    def runnable(self) -> bool:
        """True while :meth:`run` would get something done."""
        return not self._waiting and (self._current is not None or bool(self._queue))

    @property
    def waiting(self) -> bool:
        """True while work is suspended on a message to the client."""
        return self._waiting

    def defer(self, work: Work) -> None:
        """Queue ``work``; dropped when the session is over, and where :data:`MAX_DEFERRED` pieces wait already."""
        if not self.offer(work):
            self.overflowed |= not self._closed

    def offer(self, work: Work) -> bool:
        """As :meth:`defer`, for work that may be dropped: says whether it was taken, and the session goes on."""
        if self._closed or len(self._queue) >= MAX_DEFERRED:
            work.close()
            return False
        self._queue.append(work)
        return True

    def withdraw(self, work: Work) -> None:
        """Forget ``work`` unless it has begun."""
        with suppress(ValueError):
            self._queue.remove(work)
            work.close()

    def check(self) -> None:
        """Raise ProtocolError where work was lost."""
        if self.overflowed:
            raise ProtocolError(errno.ENOBUFS, f"more than {MAX_DEFERRED} pieces of the device's work wait")

    def run(self, budget_ns: int) -> None:
        """Run until nothing is runnable, or until ``budget_ns`` have passed at a pause."""
        if not self.runnable:
            return
        began = time.monotonic_ns()
        deadline = began + budget_ns
        while not self._waiting:
            if self._current is None:
                if not self._queue:
                    break
                self._current = self._queue.popleft()
            if not self._step(self._current) or time.monotonic_ns() >= deadline:
                break
        if self.timings is not None:
            self.timings.runs.observe(time.monotonic_ns() - began)

    def _step(self, work: Work) -> bool:
        answer, error = self._answer, self._error
        self._answer = self._error = None
        try:
            request = work.throw(error) if error is not None else work.send(answer)
        except StopIteration:
            self._current = None
            return True
        except Exception:
            self._log.warning("device_fault", where="deferred work", exc_info=True)
            self._current = None
            return True
        if isinstance(request, Pause):
            return True
        if not isinstance(request, MessageRequest):
            self._error = GuestMemoryError(
                errno.EINVAL, f"deferred work may await guest memory and pauses only, not {request!r}"
            )
            return True
        self._waiting = True
        if self.timings is not None:
            self._asked = time.monotonic_ns()
        self._send(request)
        return not self._waiting

    def resume(self, answer: bytes | None) -> None:
        """The client answered: ``answer`` is the data read, or None for a write. Runs at the next :meth:`run`."""
        self._answer = answer
        self._answered()

    def fail(self, code: int, reason: str) -> None:
        """The client refused, or is gone: the work gets a :class:`GuestMemoryError` at the next :meth:`run`."""
        self._error = GuestMemoryError(code, reason)
        self._answered()

    def _answered(self) -> None:
        if self.timings is not None and self._waiting:
            self.timings.messages.observe(time.monotonic_ns() - self._asked)
        self._waiting = False

    def close(self) -> None:
        """Drop everything; the work that is suspended sees ENODEV and may clean up, but not ask again."""
        self._closed = True
        work, self._current = self._current, None
        if work is not None:
            with suppress(Exception):  # whatever it makes of it, StopIteration at best
                work.throw(GuestMemoryError(errno.ENODEV, "the client is gone"))
            try:
                work.close()
            except Exception:
                self._log.warning("device_fault", where="deferred work", exc_info=True)
        while self._queue:
            self._queue.popleft().close()
        self._waiting = False
