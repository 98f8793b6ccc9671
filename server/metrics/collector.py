"""Everything that a scrape gets."""

from __future__ import annotations

from importlib.metadata import version

from devices.contract import Log
from server.durations import WorkTimings
from server.engine import Engine
from server.metrics.device import device_families
from server.metrics.families import Family, counter, gauge, histogram, labelled
from server.metrics.process import process_families
from server.metrics.sessions import session_families
from server.native.serve import ConnectionOptions


class Collector:
    """Reads what a server has counted. Also has the work of the sessions to come timed."""

    def __init__(self, engine: Engine, options: ConnectionOptions, log: Log) -> None:
        self._engine = engine
        self._options = options
        self._log = log
        self._timings = engine.timings = engine.timings or WorkTimings()
        self._version = {"version": version("vgpud")}
        self._labels = {"device": engine.device.name, "transport": options.transport.name}

    def collect(self) -> list[Family]:
        """All families, with the values of now."""
        families = [
            gauge("vgpud_build_info", "The version of vgpud.", 1, self._version),
            *session_families(self._engine),
            *self._limits(),
            *self._durations(),
            *self._trace(),
            *self._device(),
        ]
        return labelled(families, self._labels) + process_families()

    def _limits(self) -> list[Family]:
        limit = self._options.limits.max_pinned
        return [gauge("vgpud_locked_limit_bytes", "Memory that one client's device may lock.", limit)]

    def _durations(self) -> list[Family]:
        return [
            histogram(
                "vgpud_deferred_work_duration_seconds",
                "Time that deferred work of the device ran, from one look at the client's socket to the next.",
                self._timings.runs,
            ),
            histogram(
                "vgpud_dma_message_duration_seconds",
                "Time from a DMA_READ or DMA_WRITE message to its reply.",
                self._timings.messages,
            ),
        ]

    def _trace(self) -> list[Family]:
        recording = self._options.recording
        if recording is None:
            return []
        ring = recording.ring
        return [
            counter("vgpud_trace_written_bytes", "Bytes recorded by --trace.", ring.bytes_written),
            gauge("vgpud_trace_limit_bytes", "Bytes that --trace-limit allows, of all files.", ring.limit),
            gauge(
                "vgpud_trace_stopped", "Whether recording ended with an error.", int(ring.error is not None)
            ),
        ]

    def _device(self) -> list[Family]:
        try:
            return device_families(self._engine.device)
        except Exception:
            self._log.warning("device_fault", where="metrics", exc_info=True)
            return []
