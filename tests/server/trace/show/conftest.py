"""What the tests of following share: a file, who records to it, and what was read of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.server.trace.show.following import Read, Writer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def writer(file: Path) -> Iterator[Writer]:
    with closing(Writer(file)) as writer:
        yield writer


@pytest.fixture
def read() -> Read:
    return Read()
