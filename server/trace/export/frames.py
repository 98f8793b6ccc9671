"""What was on a screen, from a trace alone: the device of the trace is run again, and looked at."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from devices.display import Display, Frame, NothingOnScanout
from devices.work import run_to_completion
from protocol.trace import TraceError
from server.control_protocol import ControlError
from server.native.transport import NATIVE
from server.trace.export.known_device import known_device
from server.trace.reader import TraceReader
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.player import Meanwhile
from server.trace.replay.recorded_device import recorded_device
from server.trace.replay.replay import Hosted, host, replay
from server.trace.replay.report import Report

NS_PER_SECOND = 10**9


class FrameSink(Protocol):
    """Takes pictures."""

    def put(self, seconds: float, frame: Frame) -> None:
        """What was on the screen from then on, in seconds since the session began."""

    def finish(self) -> int:
        """There are no more; returns how many there were. Raises OSError."""

    def close(self) -> None:
        """Nothing is put any more, for whatever reason."""


class Watcher:
    """Looks at a screen whenever the device has done something, and passes on what is new."""

    def __init__(self, hosted: Hosted, display: Display, scanout: int, sink: FrameSink, began: int) -> None:
        """``began``: when the session did, in ns since 1970."""
        self._hosted = hosted
        self._display = display
        self._scanout = scanout
        self._sink = sink
        self._began = began
        self._status: object = None
        self._last: Frame | None = None

    async def look(self, time: int, meanwhile: Meanwhile) -> None:
        """An interval has been replayed; ``time`` is its own, in ns since 1970."""
        status = self._hosted.engine.device.status()
        if status == self._status:
            return
        self._status = status
        await self.capture(time, meanwhile)

    async def capture(self, time: int, meanwhile: Meanwhile) -> None:
        """What was on the screen at ``time`` is there now."""
        frame: Frame | None = None

        async def capture() -> None:
            nonlocal frame
            with suppress(NothingOnScanout, ControlError):
                frame = await self._hosted.engine.capture(self._scanout)

        try:
            with suppress(NothingOnScanout):
                frame = run_to_completion(self._display.capture(self._scanout))
        except TypeError:  # it is in guest memory, for which this driver would have to ask
            await meanwhile(capture)
        if frame is not None and frame != self._last:
            self._last = frame
            self._sink.put((time - self._began) / NS_PER_SECOND, frame)


async def export_frames(reader: TraceReader, number: int, scanout: int, sink: FrameSink) -> Report:
    """Pass on to ``sink`` what session ``number`` showed. Raises TraceError."""
    session = RecordedSession(reader, number)
    known = None if session.info.device else known_device(reader, number)
    if known is not None:
        session.info = known
    elif not (session.info.device and session.info.memory):
        raise TraceError(
            f"{reader.path} does not say what the device was and what it read: pictures are in traces of vgpud serve, "
            "and of a Bochs display in all"
        )
    device = recorded_device(session)
    if device.display is None:
        raise TraceError(f"{device.name} has no screen")
    if not 0 <= scanout < len(device.display.scanouts):
        raise TraceError(f"there is no scanout {scanout}: {device.name} has {len(device.display.scanouts)}")
    hosted = host(device, NATIVE)
    watcher = Watcher(hosted, device.display, scanout, sink, session.began)
    try:
        if session.info.areas:
            # Between looks it is not known what was in the areas, so what the device shows then was never seen.
            return await replay(session, hosted, when_looked=watcher.capture)
        return await replay(session, hosted, when_done=watcher.look)
    finally:
        device.close()
