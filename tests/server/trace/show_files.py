"""Traces that are written block by block, with times that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from struct import pack

from protocol import Command, encode, encode_error, encode_reply, encode_request
from protocol.codec import Packable, PackableRequest
from protocol.pcapng import LINKTYPE_USER0, LINKTYPE_USER1, Direction, interface, packet, section
from protocol.trace import SessionInfo

START = 1_700_000_000_000_000_000
"""When traces begin, in ns."""
GPU = SessionInfo("vgpud serve", "virtio-gpu", "native", memory=True, interrupts=True)
MEMFD = {"kind": "memfd", "device": 1, "inode": 2052, "size": 1 << 30, "seals": 6}
EVENTFD = {"kind": "eventfd", "device": 16, "inode": 1038}

Fds = Sequence[dict[str, object]]


class TraceFile:
    """The blocks of a trace; ``at`` is in microseconds since its start."""

    def __init__(self, info: SessionInfo = GPU) -> None:
        self.blocks: list[bytes] = []
        self.session(info)

    def session(self, info: SessionInfo = GPU, at: int = 0) -> TraceFile:
        self.blocks.append(section("test"))
        self.blocks.append(interface(LINKTYPE_USER0, "vfio-user"))
        self.blocks.append(interface(LINKTYPE_USER1, "records"))
        self.blocks.append(packet(1, _time(at), info.pack()))
        return self

    def request(
        self,
        number: int,
        value: PackableRequest,
        at: int = 0,
        *,
        posted: bool = False,
        fds: Fds = (),
        twin: bool = False,
        server: bool = False,
    ) -> TraceFile:
        """``server``: the server asks."""
        return self.message(
            encode_request(number, value, no_reply=posted), at, server=server, fds=fds, twin=twin
        )

    def reply(
        self,
        number: int,
        command: Command,
        value: Packable | bytes = b"",
        at: int = 0,
        *,
        fds: Fds = (),
        twin: bool = False,
        client: bool = False,
    ) -> TraceFile:
        """``client``: the client answers."""
        return self.message(encode_reply(number, command, value), at, server=not client, fds=fds, twin=twin)

    def error(self, number: int, command: Command, errno: int, at: int = 0) -> TraceFile:
        return self.message(encode_error(number, command, errno), at, server=True)

    def raw(
        self, number: int, command: int, flags: int, payload: bytes, at: int = 0, *, server: bool = False
    ) -> TraceFile:
        return self.message(encode(number, command, flags, payload), at, server=server)

    def message(
        self, data: bytes, at: int = 0, *, server: bool = False, fds: Fds = (), twin: bool = False
    ) -> TraceFile:
        said = ({"fds": list(fds)} if fds else {}) | ({"twin": True} if twin else {})
        comment = json.dumps(said) if said else ""
        direction = Direction.OUTBOUND if server else Direction.INBOUND
        self.blocks.append(packet(0, _time(at), data, direction, comment))
        return self

    def record(self, kind: int, payload: bytes, at: int = 0) -> int:
        """A packet of the second interface; returns where it is in the file."""
        place = len(self.data)
        self.blocks.append(packet(1, _time(at), bytes([kind, 0, 0, 0]) + payload))
        return place

    @property
    def data(self) -> bytes:
        return b"".join(self.blocks)

    def save(self, path: Path) -> Path:
        path.write_bytes(self.data)
        return path


def event(kind: int, flags: int, index: int, length: int, address: int, data: bytes = b"") -> bytes:
    """An event, as protocol/trace.py describes it."""
    return pack("<BBHIQ", kind, flags, index, length, address) + data


def _time(at: int) -> int:
    return START + at * 1000
