"""Fixtures of the transport's tests; every test of this folder must give back its fds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict

from tests.server.register_device import RegisterDevice
from tests.server.running import Server, open_fds, running_server


@pytest.fixture(autouse=True)
def _no_fd_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """Everything that the server logs."""
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
def device() -> Iterator[RegisterDevice]:
    device = RegisterDevice()
    yield device
    device.close()


@pytest.fixture
async def server(device: RegisterDevice, log: list[EventDict]) -> AsyncIterator[Server]:
    """A server of ``device``."""
    async with running_server(device) as server:
        yield server
