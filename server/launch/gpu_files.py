"""What each of several GPUs has of its own where the user named one: files with its number, ports counted up."""

from __future__ import annotations

import re
from pathlib import Path

_UNIX = "unix:"
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


def numbered(path: Path | None, number: int, count: int) -> Path | None:
    """``path`` for one GPU; of several, ``boot.pcapng`` becomes ``boot-0.pcapng``, ``boot-1.pcapng``."""
    if path is None or count == 1 or not path.name:
        return path
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def counted(address: str | None, number: int, count: int) -> str | None:
    """A ``--metrics`` address for one GPU; of several, the first has the port, the next the port after it.

    Port 0 is any free one for each, a UNIX socket gets a number as files do. What is no address is for the server to
    refuse.
    """
    if address is None:
        return None
    if path := unix_path(address):
        return f"{_UNIX}{numbered(path, number, count)}"
    host, colon, port = address.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) == 0:
        return address
    return f"{host}{colon}{int(port) + number}"


def unix_path(address: str | None) -> Path | None:
    """The path of a ``--metrics`` address that is a UNIX socket."""
    if address is None or not address.startswith(_UNIX):
        return None
    return Path(address.removeprefix(_UNIX))
