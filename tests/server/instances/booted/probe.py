"""Tries what a server has no business doing, and writes as JSON what came of each: ``done``, or why not.

Runs on the machine, alone, with the arguments UUID, of another instance, and FOLDER, which it may write.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000
libc = ctypes.CDLL(None, use_errno=True)


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def open_udp() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def make_file(folder: str) -> None:
    path = Path(folder) / "probe"
    path.touch()
    path.unlink()


def make_executable_memory() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def make_user_namespace() -> None:
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def main(other: str, own: str) -> None:
    attempts: dict[str, Callable[[], object]] = {
        "write its own folder": lambda: make_file(own),
        "use the network": open_udp,
        "write /etc": lambda: make_file("/etc"),
        "write /opt/vgpud": lambda: make_file("/opt/vgpud"),
        "write /run/vgpud": lambda: make_file("/run/vgpud"),
        "write /var/lib": lambda: make_file("/var/lib"),
        "write where everybody may": lambda: make_file("/srv"),
        "read /home": lambda: Path("/home/somebody/secret").read_text(),
        "open a device": lambda: Path("/dev/some-device").open("rb").close(),
        "see PID 1": lambda: Path("/proc/1").stat(),
        "become root": lambda: os.setuid(0),
        "connect to another instance": lambda: connect(f"/run/vgpud/{other}.sock"),
        "control another instance": lambda: connect(f"/run/vgpud/{other}/control.sock"),
        "make executable memory": make_executable_memory,
        "make a user namespace": make_user_namespace,
    }
    json.dump({name: outcome(attempt) for name, attempt in attempts.items()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
