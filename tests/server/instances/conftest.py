"""Folders for instances of each test, with paths that are short enough for sockets, and no server left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from server.instances.errors import InstanceError
from server.instances.pid_file import holder
from server.instances.places import Places
from server.instances.state import started
from tests.server.instances.command import Vgpud


@pytest.fixture
def places() -> Iterator[Places]:
    with TemporaryDirectory(prefix="vgpud-test-") as name:
        places = Places(Path(name) / "definitions", Path(name) / "run")
        yield places
        for uuid in started(places):
            with suppress(InstanceError, ChildProcessError):
                if (pid := holder(places.pid_file(uuid))) is not None:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        # Those that were stopped have ended: a `start` of its own would have left them to init, this process is theirs.
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


@pytest.fixture
def vgpud(places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Vgpud:
    # a server on a busy machine is not to be taken for one that hangs
    monkeypatch.setattr("server.instances.state.ANSWER_SECONDS", 120.0)
    monkeypatch.setattr("server.control_client.TIMEOUT_SECONDS", 120)
    return Vgpud(places, capsys)
