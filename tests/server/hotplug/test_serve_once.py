"""``vgpud serve --once``: for one client, and then it ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from protocol import Version, encode_request
from tests.server.test_command_line import SECONDS, greet, serving


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    client.connect(os.fspath(path))
    return client


@pytest.mark.parametrize("transport", ["native", "libvfio-user"])
def test_a_server_for_one_client_ends_with_it_and_not_with_those_that_were_none(
    tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "device"
    with serving("--socket-path", str(path), "--once", "--transport", transport) as server:
        with connect(path) as garbage:
            garbage.sendall(bytes(100))
            assert garbage.recv(4096) is not None
        connect(path).close()
        with connect(path) as client:
            client.sendall(encode_request(0, Version(0, 0)))
            assert client.recv(4096)
            with connect(path):
                pass
            assert server.poll() is None
        _, said = server.communicate(timeout=SECONDS)
        assert server.returncode == 0
    assert said.count("client_attached") == 1
    assert not path.exists()


def test_a_server_for_many_clients_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "device"
    with serving("--socket-path", str(path)) as server:
        for _ in range(2):
            assert greet(path).is_reply
        assert server.poll() is None
