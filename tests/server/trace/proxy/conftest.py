"""What the tests of the proxy share. Every test of this folder must give back its fds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog.testing
from structlog.typing import EventDict

from tests.server.register_device import PAGE
from tests.server.trace.proxy.proxies import Pair, proxied_pair


@pytest.fixture(autouse=True)
def _fds_are_given_back(no_fd_leaks: None) -> None:
    """Of every test here."""


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """Everything that the proxy logs, and a server in this process."""
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
def memfd() -> Iterator[int]:
    """Guest memory of 64 pages."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 64 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def full() -> bool:
    """Whether accesses to memory become messages; modules and tests choose for themselves."""
    return False


@pytest.fixture
async def pair(tmp_path: Path, log: list[EventDict], full: bool) -> AsyncIterator[Pair]:
    async with proxied_pair(tmp_path, full=full) as pair:
        yield pair
