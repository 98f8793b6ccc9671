"""Fixtures of the DMA core's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.dma.support import Client


@pytest.fixture
def client() -> Iterator[Client]:
    one = Client()
    yield one
    one.close()
