"""A device and the client that is attached to it, if one is: what outlives a connection."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from typing import Any, cast

import trio

from devices.contract import Device
from devices.display import Display, Frame
from devices.work import run_to_completion
from server.control_protocol import ControlError
from server.durations import WorkTimings
from server.session import Session
from server.session_totals import session_totals
from server.trace.ring import TraceRing

ATTACH_SECONDS = 4.0
"""How long a client waits for the one before it to be gone: less than the 5 s that QEMU waits for a reply."""


class DeviceBusy(OSError):  # noqa: N818 - the state that the client meets, EBUSY
    """Another client is attached to the device."""


class Engine:
    """Hosts one device for client after client."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.session: Session | None = None
        self.clients_served = 0
        self.past: Counter[str] = Counter()
        """What the sessions that are over have counted."""
        self.timings: WorkTimings | None = None
        """Where sessions time their work, if somebody wants to know."""
        self.trace: TraceRing | None = None
        """Where sessions are recorded, if they are, for :meth:`status`."""
        self._attached = trio.Lock()
        self._captures: set[trio.Event] = set()
        self._started = time.monotonic()

    async def acquire(self) -> None:
        """Have the device to oneself until :meth:`release`. Raises DeviceBusy when another client stays."""
        with trio.move_on_after(ATTACH_SECONDS):
            await self._attached.acquire()
            return
        raise DeviceBusy(errno.EBUSY, f"another client is attached to {self.device.name}")

    def release(self) -> None:
        """Let the next client have the device; by the task that acquired it."""
        self._attached.release()

    def attach(self, session: Session) -> None:
        """``session`` is the one that uses the device now."""
        self.session = session
        self.clients_served += 1
        session.work.timings = self.timings

    def detach(self) -> None:
        """The session is over: whoever waits for its work waits no longer."""
        if self.session is not None:
            self.past.update(session_totals(self.session))
        self.session = None
        for done in self._captures:
            done.set()

    @property
    def display(self) -> Display:
        """The screens of the device. Raises ControlError where it has none."""
        display = self.device.display
        if display is None:
            raise ControlError(f"{self.device.name} has no screen")
        return display

    async def capture(self, scanout: int) -> Frame:
        """What is on a scanout. Raises ControlError, NothingOnScanout, IndexError, GuestMemoryError."""
        display = self.display
        session = self.session
        if session is None:
            return cast("Frame", run_to_completion(display.capture(scanout)))
        done = trio.Event()
        outcome: list[Frame | Exception] = []

        async def capture() -> None:
            try:
                outcome.append(await display.capture(scanout))
            except Exception as error:
                outcome.append(error)
            done.set()

        self._captures.add(done)
        work = capture()
        try:
            if not session.offer(work):
                raise ControlError("the device is too busy: try again")
            session.wake()
            await done.wait()
        finally:
            self._captures.discard(done)
            session.withdraw(work)  # while the device waits for its client, people ask again and again
        if not outcome:
            raise ControlError("the client went away")
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def status(self) -> dict[str, Any]:
        """What ``vgpud status`` shows."""
        return {
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "device": self.device.name,
            "clients_served": self.clients_served,
            "trace": None if self.trace is None else self.trace.status(),
            "latencies": None if self.timings is None else self.timings.summary(),
            "client": None if self.session is None else self.session.status(),
            "model": self.device.status(),
        }
