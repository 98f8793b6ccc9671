"""``vgpud trace record`` as its users meet it: a process, its exit status, its log and its trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol import Command, Version, encode_request
from server.stop_signals import STOP_SIGNALS
from server.trace.reader import TracedMessage, TraceReader
from tests.server.test_command_line import SECONDS, VGPUD, greet, run, serving


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has told its service manager that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = "\0vgpud-test-" + os.urandom(8).hex()
        manager.bind(address)
        manager.settimeout(SECONDS)
        environment = {**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@")}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert manager.recv(100) == b"READY=1"
            yield process
        finally:
            process.kill()
            process.wait(SECONDS)
            assert process.stderr is not None
            process.stderr.close()


def recording(folder: Path, *options: str) -> list[str]:
    where = ["--listen", str(folder / "proxy"), "--connect", str(folder / "device")]
    return [*VGPUD, "trace", "record", *where, *options, str(folder / "trace")]


def commands(path: Path) -> list[int]:
    with TraceReader(path) as reader:
        return [one.header.command for one in reader if isinstance(one, TracedMessage)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "{folder}/no/such/x", "--connect", "{folder}/b", "{folder}/t"], "create the folder"),
        (["--listen", "{folder}/file", "--connect", "{folder}/b", "{folder}/t"], "is no socket"),
        (["--listen", "{folder}/a", "--connect", "{folder}/a", "{folder}/t"], "another path to --listen"),
        (["--listen", "{folder}/a", "--connect", "{folder}/b", "{folder}/no/t"], "No such file or directory"),
        (
            ["--listen", "{folder}/a", "--connect", "{folder}/b", "--trace-limit", "much", "{folder}/t"],
            "write for example 256M",
        ),
        (
            ["--listen", "{folder}/a", "--connect", "{folder}/b", "--trace-limit", "1M", "{folder}/t"],
            "give at least 4M, or none",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "file").touch()
    result = run("trace", "record", *(argument.format(folder=tmp_path) for argument in arguments))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("vgpud: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_it_records_until_a_signal_says_stop_and_takes_its_socket_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        serving("--socket-path", str(tmp_path / "device")),
        started(*recording(tmp_path, "--log-format", "json")) as proxy,
    ):
        assert (tmp_path / "proxy").is_socket()
        for _ in range(2):
            assert greet(tmp_path / "proxy").is_reply
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(tmp_path / "proxy"))
            client.sendall(encode_request(0, Version(0, 0)))
            client.recv(4096)
            proxy.send_signal(number)
            _, said = proxy.communicate(timeout=SECONDS)
            assert client.recv(1) == b""
        assert proxy.returncode == 0
    assert not (tmp_path / "proxy").exists()
    assert commands(tmp_path / "trace") == [Command.VERSION] * 6
    log = [json.loads(line) for line in said.splitlines()]
    client_events = ["client_attached", "client_left"] * 2 + ["client_attached"]
    assert [event["event"] for event in log] == ["listening", *client_events, "stopping", "client_left"]
    assert {event["pid"] for event in log if event["event"].startswith("client")} == {os.getpid()}


def test_with_once_it_ends_when_the_first_client_has_left(tmp_path: Path) -> None:
    with (
        serving("--socket-path", str(tmp_path / "device")),
        started(*recording(tmp_path, "--once", "--full")) as proxy,
    ):
        assert greet(tmp_path / "proxy").is_reply
        assert proxy.wait(SECONDS) == 0
    assert commands(tmp_path / "trace") == [Command.VERSION] * 2


def test_a_stale_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    with started(*recording(tmp_path)) as first:
        result = run(*recording(tmp_path)[3:])
        assert result.returncode == 1
        assert "another server is listening there" in result.stderr
        first.kill()
        first.wait(SECONDS)
    assert (tmp_path / "proxy").is_socket()
    with serving("--socket-path", str(tmp_path / "device")), started(*recording(tmp_path)):
        assert greet(tmp_path / "proxy").is_reply


def test_a_proxy_that_is_killed_leaves_what_it_has_recorded(tmp_path: Path) -> None:
    with serving("--socket-path", str(tmp_path / "device")), started(*recording(tmp_path)) as proxy:
        assert greet(tmp_path / "proxy").is_reply
        # The next client is served when the first has left, and then its session is in the file.
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(tmp_path / "proxy"))
            client.sendall(encode_request(0, Version(0, 0)))
            client.recv(4096)
            proxy.kill()
            proxy.wait(SECONDS)
    assert commands(tmp_path / "trace")[:2] == [Command.VERSION] * 2
