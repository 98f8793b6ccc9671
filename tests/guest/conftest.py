"""Fixtures of all tests that boot guests."""

from __future__ import annotations

import pytest

from tests.guest.support import GuestParts, find_parts


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> GuestParts:
    return find_parts(tmp_path_factory.mktemp("guest"))
