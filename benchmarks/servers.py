"""Servers to measure: ours, and a blocking one in C on libvfio-user. And a client that costs both the same."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol import HEADER, HEADER_SIZE, Capabilities, Command, Version
from server.guest.cache import cache_dir

START_SECONDS = 10.0


@contextmanager
def our_server(folder: Path, *options: str, transport: str = "native") -> Iterator[Path]:
    """``vgpud serve``; gives its socket. ``make libvfio-user`` gets the library for the transport of that name."""
    path = folder / f"{transport}.sock"
    command = [sys.executable, "-m", "server", "serve", "--socket-path", str(path), "--log-level", "warning"]
    command += ["--transport", transport]
    with _running([*command, *options], path):
        yield path


@contextmanager
def c_server(folder: Path) -> Iterator[Path]:
    """``benchmarks/c/blocking_server.c``; gives its socket. ``make libvfio-user`` gets the library."""
    library = cache_dir() / "libvfio-user"
    if not (library / "lib" / "libvfio-user.a").exists():
        raise SystemExit("libvfio-user is not there: run 'make libvfio-user' first")
    program, path = folder / "blocking_server", folder / "c.sock"
    source = Path(__file__).parent / "c" / "blocking_server.c"
    build = ["gcc", "-O2", f"-I{library / 'include'}", "-o", str(program), str(source)]
    subprocess.run([*build, str(library / "lib" / "libvfio-user.a"), "-ljson-c"], check=True)
    with _running([str(program), str(path)], path):
        yield path


@contextmanager
def _running(command: list[str], path: Path) -> Iterator[None]:
    server = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not path.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start")
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait()


class BlockingClient:
    """The cheapest client that Python can be: one message out, one in, nothing unpacked."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.fspath(path))
        capabilities = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, max_dma_maps=65535)
        self.call(Command.VERSION, Version(0, 0, capabilities).pack())

    @staticmethod
    def message(command: Command, payload: bytes) -> bytes:
        """A whole request."""
        return HEADER.pack(0, command, HEADER_SIZE + len(payload), 0, 0) + payload

    def call(self, command: Command, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send a request and take its reply. Raises OSError where that is an error."""
        message = self.message(command, payload)
        if fds:
            socket.send_fds(self.socket, [message], fds)
        else:
            self.socket.sendall(message)
        reply = self.socket.recv(1 << 16)
        _, _, _, flags, error = HEADER.unpack_from(reply)
        if error:
            raise OSError(error, f"{command.name}: {errno.errorcode.get(error, error)} (flags {flags:#x})")

    def close(self) -> None:
        self.socket.close()
