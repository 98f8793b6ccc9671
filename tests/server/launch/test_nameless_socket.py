"""Sockets without a file."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.launch.nameless_socket import nameless_socket
from tests.fds import open_fds

CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ("x" * 200)  # longer than a socket's path may be
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_client_connects_to_a_socket_that_is_nowhere(temporary: Path) -> None:
    with nameless_socket(socket.SOCK_STREAM) as server, socket.socket(socket.AF_UNIX) as client:
        assert not list(temporary.iterdir())
        server.socket.listen()
        client.connect(server.path)
        client.sendall(b"hello")
        accepted, _ = server.socket.accept()
        with accepted:
            assert accepted.recv(5) == b"hello"


def test_a_datagram_reaches_a_socket_that_is_nowhere(temporary: Path) -> None:
    with (
        nameless_socket(socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client,
    ):
        client.sendto(b"READY=1", server.path)
        assert server.socket.recv(100) == b"READY=1"


@pytest.mark.parametrize("inherits", [True, False])
def test_only_who_inherits_the_way_to_it_can_connect(temporary: Path, inherits: bool) -> None:
    with nameless_socket(socket.SOCK_STREAM) as server:
        server.socket.listen()
        fds = [server.address_fd] if inherits else []
        command = [sys.executable, "-c", CONNECT, server.path]
        done = subprocess.run(command, pass_fds=fds, stderr=subprocess.DEVNULL, check=False)
        assert (done.returncode == 0) is inherits


def test_nothing_of_a_socket_is_inherited_unasked_or_left_open(temporary: Path) -> None:
    before = open_fds()
    with nameless_socket(socket.SOCK_STREAM) as server:
        assert not os.get_inheritable(server.address_fd)
        assert not server.socket.get_inheritable()
    assert open_fds() == before


def test_a_missing_folder_for_temporary_files_is_an_error_without_a_leak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    before = open_fds()
    with pytest.raises(FileNotFoundError), nameless_socket(socket.SOCK_STREAM):
        pass
    assert open_fds() == before
