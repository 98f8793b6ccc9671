"""What ``serve --metrics ADDRESS`` adds to a server."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import structlog

from server.engine import Engine
from server.log import RepeatLimit
from server.metrics.collector import Collector
from server.metrics.listen import MetricsUnavailable, listening, name_of
from server.native.serve import ConnectionOptions

NEEDS_H11 = "--metrics needs h11, which vgpud's extra 'metrics' brings along: pip install h11"


def check_library() -> None:
    """Raises MetricsUnavailable where HTTP cannot be spoken."""
    if find_spec("h11") is None:
        raise MetricsUnavailable(NEEDS_H11)


class MetricsServer:
    """Listens; :meth:`serve` answers."""

    def __init__(
        self, listeners: Sequence[socket.socket], engine: Engine, options: ConnectionOptions
    ) -> None:
        """``engine`` and ``options`` are what there is to measure."""
        self._listeners = listeners
        self._log = RepeatLimit(structlog.get_logger())
        self._collector = Collector(engine, options, self._log)

    @property
    def names(self) -> list[str]:
        """Where it listens, for the log."""
        return [name_of(listener) for listener in self._listeners]

    async def serve(self) -> None:
        """Answer scrapers until cancelled."""
        from server.metrics.endpoint import serve_metrics  # noqa: PLC0415 - h11 is an optional dependency

        await serve_metrics(self._listeners, self._collector.collect, self._log)


@contextmanager
def metrics_server(
    address: str | None, engine: Engine, options: ConnectionOptions
) -> Iterator[MetricsServer | None]:
    """Listen at ``address`` while the block lasts, if there is one. Raises MetricsUnavailable, SocketPathError."""
    if address is None:
        yield None
        return
    check_library()
    with listening(address) as listeners:
        yield MetricsServer(listeners, engine, options)
