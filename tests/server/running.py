"""A server in the test's own process, on a socket in a folder of its own."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from devices.contract import Device
from server.control import serve_control
from server.engine import Engine
from server.libvfio_user.transport import load_transport
from server.listener import serve_clients
from server.native.serve import ConnectionOptions
from server.native.transport import NATIVE, Transport
from server.socket_path import listen_at

TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "native": lambda: NATIVE,
    "libvfio-user": functools.cache(load_transport),
}
"""By the names of ``--transport``; a missing libvfio-user fails the tests that need it."""


@dataclass(frozen=True, slots=True)
class Server:
    path: Path
    control: Path
    engine: Engine


@asynccontextmanager
async def running_server(device: Device, options: ConnectionOptions | None = None) -> AsyncIterator[Server]:
    """Serve ``device`` until the block ends; the test fails if the server does before."""
    options = options or ConnectionOptions()
    with TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder / "device", folder / "control", Engine(device))
        server.engine.trace = None if options.recording is None else options.recording.ring
        with listen_at(server.path) as listener, listen_at(server.control) as control:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_clients, listener, server.engine, options)
                nursery.start_soon(serve_control, control, server.engine)
                yield server
                nursery.cancel_scope.cancel()


def with_transport(name: str, **options: Any) -> ConnectionOptions:
    """The options of a server whose transport is ``name``."""
    return ConnectionOptions(transport=TRANSPORTS[name](), **options)


def mappings() -> int:
    """How many memory mappings this process has."""
    return len(Path("/proc/self/maps").read_text().splitlines())
