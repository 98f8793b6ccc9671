"""``vgpud`` in the test's own process, and clients of the servers that it starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from protocol import Header, Version, encode_request
from server.cli import main
from server.instances.places import Places

ONE = UUID("00000000-0000-4000-8000-000000000001")
TWO = UUID("00000000-0000-4000-8000-000000000002")
THREE = UUID("00000000-0000-4000-8000-000000000003")

_HOLD = """
import sys
from pathlib import Path
from server.instances.pid_file import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Vgpud:
    """Runs commands on the instances of one pair of folders."""

    def __init__(self, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
        self.places = places
        self._capsys = capsys

    def __call__(self, command: str, *arguments: str) -> Result:
        config = ["--config-dir", str(self.places.definitions)]
        runtime = [] if command == "types" else ["--runtime-dir", str(self.places.runtime)]
        self._capsys.readouterr()
        status = main([command, *arguments, *config, *runtime])
        out, err = self._capsys.readouterr()
        return Result(status, out, err)

    def well(self, command: str, *arguments: str) -> str:
        """What a command prints that succeeds."""
        result = self(command, *arguments)
        assert result == Result(0, result.out, "")
        return result.out

    def refusal(self, command: str, *arguments: str) -> str:
        """The one line that a command prints that fails."""
        result = self(command, *arguments)
        assert result.status == 1
        assert result.out == ""
        assert result.err.startswith("vgpud: ")
        assert result.err.count("\n") == 1
        return result.err

    def instances(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """What ``list`` says, by UUID."""
        listing = json.loads(self.well("list", "--json", *arguments))
        return {entry["uuid"]: entry for entry in listing}


@contextmanager
def attached(path: Path) -> Iterator[socket.socket]:
    """A client that the server at ``path`` has greeted."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(os.fspath(path))
        client.sendall(encode_request(3, Version(0, 0)))
        assert Header.unpack(client.recv(4096)).is_reply
        yield client


@contextmanager
def listening(path: Path, backlog: int = 1) -> Iterator[socket.socket]:
    """Somebody who listens, and never accepts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(backlog)
        yield listener
    path.unlink(missing_ok=True)


@contextmanager
def held_by_another(path: Path) -> Iterator[int]:
    """The pid of another process, which has the pid file ``path`` locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
