"""Serves the doorbell to one QEMU after another, until SIGINT or SIGTERM: ``serve_doorbell.py SOCKET``."""

import signal
import socket
import sys
from pathlib import Path

import structlog
import trio

from examples.doorbell import Doorbell
from server import log
from server.engine import Engine
from server.listener import serve_clients
from server.native.serve import ConnectionOptions
from server.socket_path import listen_at


async def serve(listener: socket.socket) -> None:
    """Serve until a signal says stop."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_clients, listener, Engine(Doorbell()), ConnectionOptions())
            structlog.get_logger().info("listening")
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    log.configure()
    with listen_at(Path(sys.argv[1])) as listening:
        trio.run(serve, listening)
