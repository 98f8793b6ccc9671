"""The end of a server of one client: QEMU has let go of it, and nobody is left who needs it, at the same moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import Version, encode_request
from server.launch.server_process import CLIENT_LEFT
from tests.server.launch.fake_qemu import SECONDS

TOLD_AS_WELL = """
import os, signal, sys
from server import serve

def run_and_be_told(*arguments, run=serve.run_async):
    run(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)

serve.run_async = run_and_be_told
from server.launch.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A server that is told to end when its client has left, and it has not cleaned up yet."""
NEVER_SERVES = """
import signal, sys
from server import serve

def listen(_):
    signal.raise_signal(signal.SIGTERM)
    while True:
        pass

serve._listener = listen
from server.launch.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A server that is told to end while it starts."""


@pytest.mark.parametrize("transport", ["native", "libvfio-user"])
def test_who_is_told_to_end_while_it_ends_cleans_up_all_the_same(tmp_path: Path, transport: str) -> None:
    control = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(os.fspath(tmp_path / "device"))
        listener.listen()
        options = ["--fd", str(listener.fileno()), "--control", str(control), "--transport", transport]
        command = [sys.executable, "-c", TOLD_AS_WELL, *options]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            try:
                client.connect(os.fspath(tmp_path / "device"))
                client.settimeout(SECONDS)
                client.sendall(encode_request(0, Version(0, 0)))
                assert client.recv(4096)
                assert control.is_socket()
                client.close()
                assert server.wait(SECONDS) == CLIENT_LEFT
            finally:
                server.kill()  # else the end of the block would wait for a server whose client is there still
    assert not control.exists()


def test_who_is_told_to_end_before_it_serves_ends_at_once() -> None:
    command = [sys.executable, "-c", NEVER_SERVES, "--fd", "0"]
    assert subprocess.run(command, timeout=SECONDS, check=False).returncode == -signal.SIGTERM
