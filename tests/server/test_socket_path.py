"""Sockets to listen on: made at a path, or passed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from server.socket_path import SocketPathError, adopt_listener, listen_at
from tests.fds import open_fds


def test_the_socket_goes_with_the_block(tmp_path: Path) -> None:
    path, before = tmp_path / "x", open_fds()
    with listen_at(path):
        assert path.is_socket()
    assert not path.exists()
    assert open_fds() == before


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    with listen_at(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
        listener.accept()[0].close()


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with listen_at(path), pytest.raises(SocketPathError, match="another server"), listen_at(path):
        pass


def test_a_live_socket_with_a_full_backlog_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(os.fspath(path))
        busy.listen(0)
        first.connect(os.fspath(path))
        with pytest.raises(SocketPathError, match="another server"), listen_at(path):
            pass


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(SocketPathError, match="is no socket"), listen_at(path):
        pass
    assert path.read_text() == "precious"


def test_a_socket_that_replaced_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as other:
        with listen_at(path):
            path.unlink()
            # The name of a file that was there before would do, but its inode may be used again.
            other.bind(os.fspath(tmp_path / "other"))
            (tmp_path / "other").rename(path)
        assert path.is_socket()


def test_a_path_that_is_too_long_or_in_no_folder_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SocketPathError, match="107 bytes"), listen_at(tmp_path / ("x" * 108)):
        pass
    with pytest.raises(SocketPathError, match="create the folder"), listen_at(tmp_path / "no" / "x"):
        pass


def test_only_a_listening_unix_stream_socket_can_be_adopted(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    for fd in (read_end, write_end):
        with pytest.raises(SocketPathError, match="not a socket"), adopt_listener(fd):
            pass
        os.close(fd)
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)):
        wrong = socket.socket(family, kind)
        with pytest.raises(SocketPathError, match="not a UNIX stream socket"), adopt_listener(wrong.detach()):
            pass
    deaf = socket.socket(socket.AF_UNIX)
    with pytest.raises(SocketPathError, match=r"call listen\(\)"), adopt_listener(deaf.detach()):
        pass
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(tmp_path / "x"))
    listening.listen()
    with adopt_listener(listening.detach()) as listener:
        assert not os.get_inheritable(listener.fileno())


@pytest.mark.parametrize("number", [-1, -(2**40), 2**40, 2**31 - 1])
def test_a_number_that_is_no_fd_is_one_line(number: int) -> None:
    with pytest.raises(SocketPathError, match=f"^--fd {number}: not "), adopt_listener(number):
        pass
