"""The contract of the transports: fixtures, and which of its tests a transport does not pass by design.

Every test of this folder must give back its fds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog.testing
from structlog.typing import EventDict

from server.native.serve import ConnectionOptions
from tests.server.register_device import RegisterDevice
from tests.server.running import TRANSPORTS, Server, running_server, with_transport
from tests.server.transports.libvfio_user_differences import DIFFERENCES


@pytest.fixture(autouse=True)
def _fds_are_given_back(no_fd_leaks: None) -> None:
    """Of every test here."""


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


@pytest.fixture(params=TRANSPORTS)
def options(request: pytest.FixtureRequest) -> ConnectionOptions:
    """A server's options, once for each transport."""
    return with_transport(request.param)


@pytest.fixture
async def server(
    device: RegisterDevice, log: list[EventDict], options: ConnectionOptions
) -> AsyncIterator[Server]:
    """A server of ``device``, once for each transport."""
    async with running_server(device, options) as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect of libvfio-user the failures that are listed, and no other."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("options") != "libvfio-user":
            continue
        name = item.name.replace("[libvfio-user]", "").replace("[libvfio-user-", "[")
        if name in DIFFERENCES:
            item.add_marker(pytest.mark.xfail(strict=True, reason=DIFFERENCES[name]))
