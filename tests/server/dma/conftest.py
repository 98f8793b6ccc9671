"""Fixtures of the DMA core's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.dma.domains.recording import RecordingDomain
from tests.server.dma.support import Client


@pytest.fixture
def client() -> Iterator[Client]:
    one = Client()
    yield one
    one.close()


@pytest.fixture
def recorded() -> tuple[Client, RecordingDomain]:
    domain = RecordingDomain()
    client = Client(domain)
    client.map(0, 64)
    return client, domain
