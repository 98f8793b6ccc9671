"""Fixtures of the contract; every test gives back its fds, and has a temporary folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from tests.server.transports.conftest import device, log

__all__ = ["device", "log"]


@pytest.fixture(autouse=True)
def _fds_are_given_back(no_fd_leaks: None) -> None:
    """Of every test here."""


@pytest.fixture(autouse=True)
def _temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What other processes have in the common one is not what a test left behind; the path of a socket is short."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield
