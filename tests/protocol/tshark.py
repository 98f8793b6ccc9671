"""tshark with the dissector of vfio-user messages, and captures for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import pytest

import protocol
from protocol import pcapng
from protocol.pcapng import Direction

DISSECTOR: Final = Path(protocol.__file__).parent / "wireshark" / "vfio-user.lua"

Value: TypeAlias = int | bool | bytes | str
Row: TypeAlias = dict[str, list[Value]]

COLUMNS: Final = ("_ws.col.Protocol", "_ws.col.Info")
EXPERTS: Final = ("_ws.malformed", "_ws.expert.severity", "_ws.expert.message")
WARNING: Final = 0x600000
ERROR: Final = 0x800000
"""Severities of expert infos."""

_TIMEOUT = 600
# Bytes 0xFE and 0xFF, which are in no text of Wireshark's.
_SEPARATOR, _AGGREGATOR = "\udcfe", "\udcff"


def tshark(file: Path, *arguments: str) -> str:
    """What tshark prints of ``file``. Fails the test where it is missing, cannot run Lua, or complains."""
    _require_dissector()
    return _run("-r", str(file), *arguments)


@cache
def glossary(kind: str) -> list[list[str]]:
    """The lines of ``tshark -G`` that are about our protocols, split at their tabs."""
    lines = [line.split("\t") for line in _run("-G", kind).splitlines()]
    return [line for line in lines if any(part.startswith(("vfio_user", "vgpud")) for part in line)]


def rows(file: Path, *arguments: str) -> list[Row]:
    """For every packet, the values of all fields of ours, and of COLUMNS and EXPERTS, in order; none: an empty list."""
    types = (
        field_types() | dict.fromkeys(COLUMNS + EXPERTS, "FT_STRING") | {"_ws.expert.severity": "FT_UINT32"}
    )
    wanted = [part for name in types for part in ("-e", name)]
    layout = ["-E", f"separator={_SEPARATOR}", "-E", f"aggregator={_AGGREGATOR}", "-E", "occurrence=a"]
    lines = tshark(file, "-T", "fields", *layout, *wanted, *arguments).split("\n")[:-1]
    return [_row(types, line.split(_SEPARATOR)) for line in lines]


@cache
def field_types() -> dict[str, str]:
    """The type of every field of ours, by name."""
    return {line[2]: line[3] for line in glossary("fields") if line[0] == "F"}


class Capture:
    """A file in the making, with the interfaces of a trace. Frames are counted from 1."""

    def __init__(self) -> None:
        self.frames = 0
        self.time = 1_700_000_000_123_456_789
        self._blocks: list[bytes] = []
        self.section()

    def section(self) -> None:
        self._blocks.append(
            pcapng.section("tests")
            + pcapng.interface(pcapng.LINKTYPE_USER0, "messages")
            + pcapng.interface(pcapng.LINKTYPE_USER1, "events")
            + pcapng.interface(pcapng.LINKTYPE_USER2, "additions")
        )

    def message(
        self, data: bytes, direction: Direction = Direction.INBOUND, *, after: int = 1000, comment: str = ""
    ) -> int:
        """Add a message, ``after`` ns behind the packet before; return the number of its frame."""
        self.time += after
        return self.block(pcapng.packet(0, self.time, data, direction, comment))

    def record(self, data: bytes) -> int:
        """Add a packet of the second interface."""
        return self.block(pcapng.packet(1, self.time, data))

    def addition(self, data: bytes, direction: Direction = Direction.UNKNOWN) -> int:
        """Add a packet of the third interface."""
        return self.block(pcapng.packet(2, self.time, data, direction))

    def block(self, block: bytes) -> int:
        """Add a block that is a packet."""
        self._blocks.append(block)
        self.frames += 1
        return self.frames

    def write(self, path: Path) -> Path:
        path.write_bytes(b"".join(self._blocks))
        return path


def capture_of(messages: Iterable[bytes], path: Path) -> Path:
    """A file of messages from the client."""
    capture = Capture()
    for message in messages:
        capture.message(message)
    return capture.write(path)


def record_capture(records: Iterable[bytes], path: Path) -> Path:
    """A file of packets of the second interface."""
    capture = Capture()
    for record in records:
        capture.record(record)
    return capture.write(path)


def _row(types: dict[str, str], cells: Sequence[str]) -> Row:
    assert len(cells) == len(types)
    return {
        name: [_value(kind, value) for value in cell.split(_AGGREGATOR)] if cell else []
        for (name, kind), cell in zip(types.items(), cells, strict=True)
    }


def _value(kind: str, value: str) -> Value:
    if kind == "FT_BYTES":
        return bytes.fromhex(value)
    if kind == "FT_BOOLEAN":
        return value in ("1", "True")
    if kind.startswith(("FT_UINT", "FT_INT", "FT_FRAMENUM")):
        return int(value, 0)
    return value


@cache
def _require_dissector() -> None:
    if not any("vfio_user" in line for line in glossary("protocols")):
        pytest.fail(
            "this tshark does not run Lua scripts, or not for root, and so has no dissector of vfio-user"
        )


def _run(*arguments: str) -> str:
    """Run with a configuration of its own. The script comes last, because -G has to be first."""
    if shutil.which("tshark") is None:
        pytest.fail("tshark is missing: apt-get install tshark")
    with TemporaryDirectory() as home:
        result = subprocess.run(
            ["tshark", *arguments, "-X", f"lua_script:{DISSECTOR}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=_TIMEOUT,
            env={"PATH": os.environ["PATH"], "HOME": home, "WIRESHARK_CONFIG_DIR": home, "LC_ALL": "C.UTF-8"},
        )
    # Root is warned, and scripts that do not load are told there too.
    if result.returncode != 0 or "Lua" in result.stderr:
        pytest.fail(f"tshark {' '.join(arguments)[:200]} ended with {result.returncode}: {result.stderr}")
    return result.stdout
