"""Logging set-up: structlog to stderr, for people (console) or for machines (JSON lines)."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from contextlib import suppress
from typing import TextIO, cast

import structlog

from devices.contract import Log

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("console", "json")
REPEATS = 20
"""How often one event of one client is worth a line; a client that goes on is heard at the debug level only."""


_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # locals may hold what is in the guest
)


class RepeatLimit:
    """A log that a client or its guest cannot flood: each event comes :data:`REPEATS` times, then as debug."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._seen: Counter[str] = Counter()

    def debug(self, event: str, **fields: object) -> object:
        """Pass it on; the debug level is not limited."""
        return self._log.debug(event, **fields)

    def info(self, event: str, **fields: object) -> object:
        """Pass it on as info, or as debug when there were many."""
        if self._often(event):
            return self._log.debug(event, **fields)
        return self._log.info(event, **self._marked(event, fields))

    def warning(self, event: str, **fields: object) -> object:
        """Pass it on as a warning, or as debug when there were many."""
        if self._often(event):
            return self._log.debug(event, **fields)
        return self._log.warning(event, **self._marked(event, fields))

    def _often(self, event: str) -> bool:
        self._seen[event] += 1
        return self._seen[event] > REPEATS

    def _marked(self, event: str, fields: dict[str, object]) -> dict[str, object]:
        return {**fields, "further": "at debug level"} if self._seen[event] == REPEATS else fields


class _Unbreakable:
    """A stream that loses what it cannot write: who reads the log may go away, and the server must not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure(format_name: str = "console", level: str = "info", stream: TextIO | None = None) -> None:
    """Send events to ``stream`` (stderr unless told otherwise) in one of :data:`FORMATS`."""
    stream = stream or sys.stderr
    renderer: structlog.typing.Processor
    if format_name == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=format_name == "json"),
            _TRACEBACKS if format_name == "json" else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unbreakable(stream))),
        cache_logger_on_first_use=False,
    )


def _keep(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return event
