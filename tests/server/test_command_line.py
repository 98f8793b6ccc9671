"""``vgpud`` as its users meet it: a process, its exit status, and what it prints where."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol import Command, Header, MessageType, Version, encode, encode_request
from server.stop_signals import STOP_SIGNALS

VGPUD = [sys.executable, "-m", "server"]
SECONDS = 120


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VGPUD, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)


@contextmanager
def serving(
    *arguments: str, ready: Path | None = None, pass_fds: Sequence[int] = (), notify: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A server that has told its service manager that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = "\0vgpud-test-" + os.urandom(8).hex() if notify is None else str(notify)
        manager.bind(address)
        manager.settimeout(SECONDS)
        environment = {**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@")}
        process = subprocess.Popen(
            [*VGPUD, "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env=environment,
        )
        try:
            assert manager.recv(100) == b"READY=1"
            if ready is not None:
                assert ready.is_socket()
            yield process
        finally:
            process.kill()
            process.communicate()


def greet(path: Path) -> Header:
    """Say VERSION to a server; returns the header of the reply."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
        client.sendall(encode_request(3, Version(0, 0)))
        return Header.unpack(client.recv(4096))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve"], "needs --socket-path PATH or --fd N"),
        (["serve", "--socket-path", "{folder}/no/such/x"], "create the folder {folder}/no/such first"),
        (
            ["serve", "--socket-path", "{folder}/" + 100 * "x"],
            "longer than the 107 bytes that a UNIX socket allows; choose a",
        ),
        (["serve", "--socket-path", "{folder}/file"], "is no socket; remove it or choose another path"),
        (["serve", "--socket-path", "{folder}/x", "--device", "nothing"], "there are: virtio-gpu"),
        (["serve", "--socket-path", "{folder}/x", "--device", "virtio-gpu,colour=red"], "it has: scanouts,"),
        (["serve", "--socket-path", "{folder}/x", "--device", "virtio-gpu,width"], "width=1280"),
        (["serve", "--socket-path", "{folder}/x", "--device", "virtio-gpu,width=wide"], "not a whole number"),
        (["serve", "--socket-path", "{folder}/x", "--device", "virtio-gpu,scanouts=17"], "choose 1 to 16"),
        (["serve", "--socket-path", "{folder}/x", "--max-pinned", "much"], "write for example 256M"),
        (
            ["serve", "--socket-path", "{folder}/x", "--dma-retain", "much"],
            "--dma-retain: 'much' is not a size",
        ),
        (["serve", "--socket-path", "{folder}/x", "--max-pinned", "1M", "--dma-retain", "2M"], "permits"),
        (["serve", "--socket-path", "{folder}/x", "--dma-domain", "type1"], "needs --vfio-group N"),
        (
            ["serve", "--socket-path", "{folder}/x", "--dma-domain", "type1", "--vfio-group", "99999"],
            "vfio-pci",
        ),
        (
            ["serve", "--socket-path", "{folder}/x", "--dma-domain", "type1", "--vfio-container", "0"],
            "fd 0 is not",
        ),
        (["serve", "--socket-path", "{folder}/x", "--vfio-group", "1"], "are for --dma-domain type1"),
        (
            ["serve", "--socket-path", "{folder}/x", "--dma-domain", "type1", "--dma-bits", "12"],
            "choose 13 to 64",
        ),
        (["serve", "--fd", "0"], "--fd 0: not a socket"),
        (["status", "--control", "{folder}/x"], "no server answers there"),
        (["screenshot", "--control", "{folder}/x", "{folder}/x.png"], "no server answers there"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "file").touch()
    result = run(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("vgpud: ")
    assert result.stderr.count("\n") == 1
    assert says.format(folder=tmp_path) in result.stderr


@pytest.mark.parametrize(
    "command", ["list", "serve --socket-path x", "status --control x", "trace show x", "detach --qmp x"]
)
def test_an_unknown_option_is_answered_with_the_usage_of_the_command(command: str) -> None:
    result = run(*command.split(), "--colour", "red")
    name = command.partition(" -")[0].removesuffix(" x")
    assert result.returncode == 2
    assert result.stderr.startswith(f"usage: vgpud {name} ")
    assert result.stderr.endswith(f"\nvgpud {name}: error: unrecognized arguments: --colour red\n")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_the_server_and_takes_its_sockets_along(tmp_path: Path, number: signal.Signals) -> None:
    device, control = tmp_path / "device", tmp_path / "control"
    with serving("--socket-path", str(device), "--control", str(control), ready=device) as server:
        assert control.is_socket()
        assert greet(device).is_reply
        server.send_signal(number)
        out, said = server.communicate(timeout=SECONDS)
        assert server.returncode == 0
    assert out == ""
    assert "stopping" in said
    assert not device.exists()
    assert not control.exists()


def test_under_nohup_the_end_of_the_terminal_ends_no_server(tmp_path: Path) -> None:
    device = tmp_path / "device"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving("--socket-path", str(device)) as server:
            server.send_signal(signal.SIGHUP)
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=SECONDS)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert server.returncode == 0
    assert "SIGTERM" in said
    assert "SIGHUP" not in said


def test_a_client_that_is_attached_does_not_keep_a_server_from_ending(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with serving("--socket-path", str(device)) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(device))
        client.sendall(encode_request(0, Version(0, 0)))
        client.recv(4096)
        server.terminate()
        server.communicate(timeout=SECONDS)
        assert server.returncode == 0
        assert client.recv(1) == b""


def test_a_stale_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with serving("--socket-path", str(device)) as first:
        result = run("serve", "--socket-path", str(device))
        assert result.returncode == 1
        assert "another server is listening there" in result.stderr
        assert greet(device).is_reply
        first.kill()
        first.communicate()
    assert device.is_socket()
    with serving("--socket-path", str(device)):
        assert greet(device).is_reply


def test_it_serves_on_a_listening_socket_that_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "passed"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        refused = subprocess.run(
            [*VGPUD, "serve", "--fd", str(listener.fileno())],
            capture_output=True,
            text=True,
            pass_fds=[listener.fileno()],
            timeout=SECONDS,
            check=False,
        )
        assert refused.returncode == 1
        assert "call listen() on it" in refused.stderr
        listener.listen()
        with serving("--fd", str(listener.fileno()), pass_fds=[listener.fileno()]) as server:
            assert greet(path).is_reply
            server.terminate()
            server.communicate(timeout=SECONDS)
            assert server.returncode == 0
    assert path.exists()


def test_readiness_is_told_to_a_named_socket_as_well(tmp_path: Path) -> None:
    with serving("--socket-path", str(tmp_path / "device"), notify=tmp_path / "notify") as server:
        assert server.poll() is None


def test_the_log_is_json_lines_where_that_is_asked_for(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with serving("--socket-path", str(device), "--log-format", "json") as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(device))
            client.sendall(encode(1, Command.DEVICE_RESET, MessageType.COMMAND, b""))
            assert Header.unpack(client.recv(4096)).is_error
        server.terminate()
        _, said = server.communicate(timeout=SECONDS)
    events = [json.loads(line) for line in said.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "listening"
    assert names[-1] == "stopping"
    dropped = next(event for event in events if event["event"] == "client_dropped")
    assert dropped["reason"] == "the first message must be VERSION"
    assert dropped["pid"] == os.getpid()


def test_capabilities_are_printed_as_json() -> None:
    result = run("serve", "--print-capabilities")
    assert result.returncode == 0
    assert json.loads(result.stdout)["type"] == "gpu"


def test_devices_are_listed_for_people_and_for_programs() -> None:
    assert "virtio-gpu: " in run("devices").stdout
    model, *_ = json.loads(run("devices", "--json").stdout)
    assert model["name"] == "virtio-gpu"
    assert {"scanouts", "width", "height"} <= {option["name"] for option in model["options"]}


def test_status_and_screenshot_ask_a_running_server(tmp_path: Path) -> None:
    device, control, picture = tmp_path / "device", tmp_path / "control", tmp_path / "x.png"
    with serving("--socket-path", str(device), "--control", str(control)):
        greet(device)
        status = run("status", "--control", str(control), "--json")
        assert json.loads(status.stdout)["clients_served"] == 1
        assert "clients served: 1" in run("status", "--control", str(control)).stdout.splitlines()
        for scanout, says in (("0", "shows nothing on scanout 0"), ("5", "there is no scanout 5")):
            result = run("screenshot", "--control", str(control), "--scanout", scanout, str(picture))
            assert result.returncode == 1
            assert says in result.stderr
    assert not picture.exists()


def test_a_log_that_nobody_reads_does_not_end_the_server(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with serving("--socket-path", str(device)) as server:
        assert server.stderr is not None
        server.stderr.close()
        server.stderr = None
        assert greet(device).is_reply
        assert greet(device).is_reply
        server.terminate()
        assert server.wait(SECONDS) == 0
