"""``vgpud trace export --json``: everything that is in a trace."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from protocol import Command, GetRegionInfo, RegionRead, RegionReadReply
from protocol.trace import SessionInfo, TraceError, digest
from server.trace.export.json_lines import export_json
from server.trace.reader import TraceReader
from tests.server.trace.show_files import GPU, START, TraceFile, event


def exported(path: Path) -> list[dict[str, Any]]:
    output = io.StringIO()
    with TraceReader(path) as reader:
        export_json(reader, output)
    return list(map(json.loads, output.getvalue().splitlines()))


def test_sessions_are_exported(tmp_path: Path) -> None:
    trace = TraceFile(GPU).request(1, GetRegionInfo(0)).session(SessionInfo("x", continued=True))
    trace.request(2, GetRegionInfo(0))

    first, one, second, other = exported(trace.save(tmp_path / "trace"))

    assert first == {
        "type": "session",
        "session": 1,
        "recorder": "vgpud serve",
        "device": "virtio-gpu",
        "transport": "native",
        "memory": True,
        "interrupts": True,
        "continued": False,
        "areas": False,
        "recording": "",
        "file": 0,
    }
    assert one["session"] == 1
    assert (second["session"], second["recorder"], second["continued"]) == (2, "x", True)
    assert other["session"] == 2


def test_messages_are_exported_decoded_and_raw(tmp_path: Path) -> None:
    trace = TraceFile().request(7, RegionRead(0x14, 4, 1))
    trace.reply(7, Command.REGION_READ, RegionReadReply(0x14, 4, b"\x0f"), 20).raw(8, 99, 0xFF, b"\1\2")

    _, request, reply, strange = exported(trace.save(tmp_path / "trace"))

    assert request["header"] == {"message_id": 7, "command": 9, "size": 32, "flags": 0, "error": 0}
    assert request["payload"] == "1400000000000000" + "04000000" + "01000000"
    assert reply["header"] == {"message_id": 7, "command": 9, "size": 33, "flags": 1, "error": 0}
    assert reply["payload"] == "1400000000000000" + "04000000" + "01000000" + "0f"
    assert reply["register"] == "common.device_status"
    assert reply["data"] == "0f"
    assert reply["reply_to"] == 1
    assert strange["header"]["flags"] == 0xFF
    assert strange["payload"] == "0102"
    assert strange["reason"]


def test_all_that_the_device_saw_is_exported(tmp_path: Path) -> None:
    trace = TraceFile().request(1, GetRegionInfo(0))
    page = bytes(range(256)) * 16
    content = digest(page) + len(page).to_bytes(4, "little") + zlib.compress(page)
    place = trace.record(2, content).to_bytes(8, "little")
    events = event(1, 3, 0, 4096, 0x10000, digest(page) + place) + event(2, 0, 0, 1, 0x20000, b"\7")
    trace.record(3, events + event(3, 0, 2, 0, 1), 10)

    _, _, look, write, interrupt = exported(trace.save(tmp_path / "trace"))

    assert (look["type"], look["access"], look["in_place"]) == ("memory", "read", True)
    assert bytes.fromhex(look["data"]) == page
    assert (write["access"], write["address"], write["data"]) == ("write", 0x20000, "07")
    assert (interrupt["type"], interrupt["irq"], interrupt["vector"]) == ("interrupt", "MSIX", 1)
    assert interrupt["timestamp"] == START + 10_000


def test_what_is_not_in_the_trace_is_null_and_what_comes_behind_it_is_there(tmp_path: Path) -> None:
    trace = TraceFile().request(1, GetRegionInfo(0))
    trace.record(
        3, event(1, 1, 0, 4096, 0x10000, digest(b"gone") + bytes(8)) + event(2, 0, 0, 1, 0x20000, b"\7")
    )

    _, _, read, write = exported(trace.save(tmp_path / "trace"))

    assert (read["address"], read["length"], read["data"]) == (0x10000, 4096, None)
    assert write["data"] == "07"


def test_a_file_that_was_cut_short_is_exported_up_to_there(tmp_path: Path) -> None:
    trace = TraceFile().request(1, GetRegionInfo(0)).request(2, GetRegionInfo(1))
    path = tmp_path / "trace"
    path.write_bytes(trace.data[:-1])

    assert [one.get("number") for one in exported(path)] == [None, 1]


def test_damage_is_an_error_after_what_comes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(TraceFile().request(1, GetRegionInfo(0)).data + bytes(12))
    output = io.StringIO()

    with TraceReader(path) as reader, pytest.raises(TraceError, match="damaged at byte"):
        export_json(reader, output)

    assert len(output.getvalue().splitlines()) == 2
