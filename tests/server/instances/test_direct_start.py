"""Starts without systemd that are interrupted, or that come too late."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from server.child_server.output import ServerOutput
from server.child_server.readiness import Readiness
from server.instances import direct
from server.instances.pid_file import holder
from server.instances.places import Places
from tests.server.instances.command import ONE, Vgpud
from tests.server.instances.test_direct import define, pid_of, sockets

SECONDS = 120
PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 24, 24
"""linux/prctl.h and linux/capability.h"""
LESS_THAN_A_LOG = 1 << 20
HOLD = """
import socket, sys
if "serve-instance" in sys.orig_argv:
    with socket.socket(socket.AF_UNIX) as test:
        test.connect("{}")
        test.recv(1)
"""


@contextmanager
def starting(
    places: Places, folder: Path, shell: str = ""
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """``vgpud start`` as a process, whose server, at the other end of the socket, goes no further than that."""
    for name in ("python", "temporary"):
        (folder / name).mkdir()
    (folder / "python" / "sitecustomize.py").write_text(HOLD.format(folder / "hold"))
    folders = ["--config-dir", str(places.definitions), "--runtime-dir", str(places.runtime)]
    command = [sys.executable, "-m", "server", "start", str(ONE), *folders]
    environment = {**os.environ, "PYTHONPATH": str(folder / "python"), "TMPDIR": str(folder / "temporary")}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "hold"))
        listener.listen()
        listener.settimeout(SECONDS)
        with subprocess.Popen(
            ["sh", "-c", f'{shell}exec "$@"', "sh", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as start:
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(SECONDS)
                yield start, accepted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_start_that_is_stopped_leaves_neither_a_server_nor_files(
    vgpud: Vgpud, tmp_path: Path, number: signal.Signals
) -> None:
    define(vgpud)
    with starting(vgpud.places, tmp_path) as (start, server):
        start.send_signal(number)
        _, said = start.communicate(timeout=SECONDS)
        assert server.recv(1) == b""
    interrupted = number is signal.SIGINT
    assert start.returncode == (130 if interrupted else -number)
    assert said == ("vgpud: interrupted\n" if interrupted else "")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert holder(vgpud.places.pid_file(ONE)) is None
    assert not sockets(vgpud.places)
    vgpud.well("start", str(ONE))


def test_a_start_goes_on_behind_a_signal_that_is_ignored(vgpud: Vgpud, tmp_path: Path) -> None:
    """As under nohup(1)."""
    define(vgpud)
    with starting(vgpud.places, tmp_path, "trap '' HUP; ") as (start, server):
        start.send_signal(signal.SIGHUP)
        server.shutdown(socket.SHUT_RDWR)  # the server goes on
        out, said = start.communicate(timeout=SECONDS)
    assert (start.returncode, out, said) == (0, f"{vgpud.places.socket(ONE)}\n", "")
    assert vgpud.instances()[str(ONE)]["state"] == "running"
    os.kill(
        pid_of(vgpud.places, ONE), signal.SIGKILL
    )  # no child of ours, as in the tests that start in-process


def test_who_comes_too_late_leaves_the_log_of_who_runs_alone(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    pid, log = pid_of(vgpud.places, ONE), vgpud.places.log(ONE)
    before = log.read_text()
    assert before.count("listening") == 1
    monkeypatch.setattr(
        "server.instances.commands._start", lambda manager, _, definition: manager.start(definition)
    )
    assert f"it is running already, as process {pid}" in vgpud.refusal("start", str(ONE))
    assert log.read_text() == before
    assert Path(f"/proc/{pid}/fd/2").readlink() == log
    assert {path.name for path in vgpud.places.folder(ONE).iterdir()} == {"control.sock", "log", "pid"}


def test_a_log_that_cannot_be_had_is_one_line_and_nothing_runs(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.places.log(ONE).mkdir(parents=True)
    vgpud.places.folder(ONE).chmod(0o700)
    assert f"{vgpud.places.log(ONE)}: Is a directory; remove it" in vgpud.refusal("start", str(ONE))
    assert holder(vgpud.places.pid_file(ONE)) is None
    assert not sockets(vgpud.places)


@pytest.mark.parametrize("hard", [LESS_THAN_A_LOG, resource.RLIM_INFINITY], ids=["hard", "soft"])
def test_a_server_starts_where_files_may_be_no_larger_than_a_log(vgpud: Vgpud, hard: int) -> None:
    def limited() -> None:
        """In a child: files of no more than 1 MiB, and not the privilege to have more."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (LESS_THAN_A_LOG, hard))
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE)  # refused where nobody is privileged

    define(vgpud)
    folders = ["--config-dir", str(vgpud.places.definitions), "--runtime-dir", str(vgpud.places.runtime)]
    done = subprocess.run(
        [sys.executable, "-m", "server", "start", str(ONE), *folders],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        preexec_fn=limited,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{vgpud.places.socket(ONE)}\n", "")
    pid = pid_of(vgpud.places, ONE)
    assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (LESS_THAN_A_LOG, LESS_THAN_A_LOG)
    vgpud.well("stop", str(ONE))


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), ValueError("invalid")])
def test_a_server_whose_log_cannot_be_bounded_is_ended(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    spawned, spawn = [], direct._spawn

    def remember(
        places: Places, uuid: UUID, output: ServerOutput, readiness: Readiness
    ) -> subprocess.Popen[bytes]:
        spawned.append(spawn(places, uuid, output, readiness))
        return spawned[0]

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(direct, "_spawn", remember)
    monkeypatch.setattr("server.instances.direct.resource.prlimit", refuse)
    define(vgpud)
    assert f"the server's log cannot be bounded: {error}" in vgpud.refusal("start", str(ONE))
    assert [process.returncode for process in spawned] == [-signal.SIGKILL]
    assert holder(vgpud.places.pid_file(ONE)) is None


def test_a_folder_for_sockets_whose_name_is_too_long_is_named(
    vgpud: Vgpud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    define(vgpud)
    assert "AF_UNIX path too long; set TMPDIR to another folder" in vgpud.refusal("start", str(ONE))
    assert list(folder.iterdir()) == []
