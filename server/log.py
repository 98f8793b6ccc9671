"""Logging set-up: structlog to stderr, for people (console) or for machines (JSON lines)."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("console", "json")


def configure(format_name: str = "console", level: str = "info", stream: TextIO | None = None) -> None:
    """Send events to ``stream`` (stderr unless told otherwise) in one of :data:`FORMATS`."""
    stream = stream or sys.stderr
    renderer: structlog.typing.Processor
    if format_name == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=format_name == "json"),
            structlog.processors.dict_tracebacks if format_name == "json" else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def _keep(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return event
