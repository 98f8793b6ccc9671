"""What a trace says about a file descriptor: JSON in the comment of the message that carried it.

    {"fds": [{"kind": "memfd", "device": 1, "inode": 2052, "size": 1073741824, "seals": 3}], "twin": true}

``kind`` is eventfd, socket, memfd, file or other; ``size`` and ``seals`` are there where the kernel has them; device
and inode tell whether two fds are of the same file. ``twin`` is there for messages on the twin socket.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.interrupts import EVENTFD_LINK

MAX_FDS = 1024
"""Descriptions of fds that are read with one message; Linux passes 253 at most."""

_MEMFD_LINK = "/memfd:"
"""How /proc calls what memfd_create made. Any file on a tmpfs has seals, too, and is none."""
_NUMBERS = range(1 << 64)
_KINDS = ("eventfd", "socket", "memfd", "file", "other")


@dataclass(frozen=True, slots=True)
class FdFacts:
    """What is known about a file descriptor; -1 where it is not known."""

    kind: str
    device: int = 0
    inode: int = 0
    size: int = -1
    seals: int = -1


@dataclass(frozen=True, slots=True)
class MessageFacts:
    """What a comment says of a message."""

    fds: tuple[FdFacts, ...] = ()
    twin: bool = False

    def pack(self) -> str:
        """The comment, empty where there is nothing to say."""
        value: dict[str, object] = {}
        if self.fds:
            value["fds"] = [_packed(facts) for facts in self.fds]
        if self.twin:
            value["twin"] = True
        return json.dumps(value, separators=(",", ":")) if value else ""

    @classmethod
    def unpack(cls, comment: str) -> MessageFacts:
        """Read a comment; one that somebody else wrote says nothing."""
        if not comment.startswith("{"):
            return NOTHING
        try:
            value = json.loads(comment)
        except (ValueError, RecursionError):
            return NOTHING
        fds = value.get("fds", [])
        if not isinstance(fds, list):
            fds = []
        facts = tuple(_unpacked(one) for one in fds[:MAX_FDS] if isinstance(one, dict))
        return cls(facts, value.get("twin") is True)


NOTHING = MessageFacts()


def fd_facts(fd: int) -> FdFacts:
    """What the kernel says of an open ``fd``."""
    status = os.fstat(fd)
    kind, size, seals = "other", -1, -1
    if stat.S_ISSOCK(status.st_mode):
        kind = "socket"
    elif stat.S_ISREG(status.st_mode):
        kind, size = "file", status.st_size
        with suppress(OSError):
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            kind = "memfd" if _link(fd).startswith(_MEMFD_LINK) else kind
    elif _link(fd) == EVENTFD_LINK:
        kind = "eventfd"
    return FdFacts(kind, status.st_dev, status.st_ino, size, seals)


def message_facts(fds: Sequence[int], *, twin: bool = False) -> str:
    """The comment of a message that carries ``fds``."""
    return MessageFacts(tuple(map(fd_facts, fds)), twin).pack()


def _link(fd: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    return ""


def _packed(facts: FdFacts) -> dict[str, object]:
    value: dict[str, object] = {"kind": facts.kind, "device": facts.device, "inode": facts.inode}
    if facts.size >= 0:
        value["size"] = facts.size
    if facts.seals >= 0:
        value["seals"] = facts.seals
    return value


def _unpacked(value: Mapping[object, object]) -> FdFacts:
    def number(key: str, default: int) -> int:
        found = value.get(key, default)
        return found if type(found) is int and found in _NUMBERS else default

    kind = value.get("kind")
    return FdFacts(
        kind if isinstance(kind, str) and kind in _KINDS else "other",
        number("device", 0),
        number("inode", 0),
        number("size", -1),
        number("seals", -1),
    )
