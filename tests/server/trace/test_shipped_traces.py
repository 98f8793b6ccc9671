"""The traces that ship with the tests: real guests, replayed, and read by Wireshark.

They are regression tests of the device models: what a stock driver was answered, it has to be answered for ever.
``python -m tests.traces.record`` makes them anew, for when an answer is changed on purpose.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.models import MODELS
from devices.registry import create_device
from server.trace.export.frames import export_frames
from server.trace.export.pictures import Folder
from server.trace.pairing import DecodedMessage, walk
from server.trace.reader import TracedMessage, TraceReader
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.replay import host, replay
from tests.protocol.tshark import WARNING, rows
from tests.server.running import TRANSPORTS
from tests.traces.record import SCENES

TRACES = Path(__file__).parents[2] / "traces"
ALL = sorted(path.name for path in TRACES.glob("*.pcapng"))


def test_every_scene_has_its_trace() -> None:
    assert {f"{scene}.pcapng" for scene in SCENES} <= set(ALL)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("scene", SCENES)
async def test_what_a_stock_guest_was_answered_it_is_answered_again(scene: str, transport: str) -> None:
    with TraceReader(TRACES / f"{scene}.pcapng") as reader:
        session = RecordedSession(reader, 1)
        device = create_device(MODELS, session.info.device)
        report = await replay(session, host(device, TRANSPORTS[transport]()))
    assert report.same, report.first
    assert report.sent > 300
    assert report.interrupts > 0
    assert report.writes > 50


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_with_shared_memory_what_guest_and_device_did_in_turn_is_done_again(transport: str) -> None:
    # In the others the guest changed its rings while the device looked at them (docs/traces.md, Replay).
    with TraceReader(TRACES / "modetest-blob.pcapng") as reader:
        session = RecordedSession(reader, 1)
        device = create_device(MODELS, session.info.device)
        report = await replay(session, host(device, TRANSPORTS[transport]()), memory="shared")
    assert report.same, report.first
    assert report.interrupts > 0
    assert report.writes > 50


@pytest.mark.parametrize("name", ALL)
def test_wireshark_reads_every_message(name: str) -> None:
    path = TRACES / name
    with TraceReader(path) as reader:
        headers = [record.header for record in reader if isinstance(record, TracedMessage)]
    frames = rows(path)
    severities = [severity for frame in frames for severity in frame["_ws.expert.severity"]]
    assert [severity for severity in severities if int(severity) >= WARNING] == []
    assert [frame["_ws.malformed"] for frame in frames if frame["_ws.malformed"]] == []
    messages = [frame for frame in frames if frame["vfio_user.command"]]
    for field in ("message_id", "command", "size"):
        seen = [frame[f"vfio_user.{field}"] for frame in messages]
        assert seen == [[getattr(header, field)] for header in headers]


@pytest.mark.parametrize("name", ALL)
def test_every_message_is_understood_and_every_reply_finds_its_request(name: str) -> None:
    with TraceReader(TRACES / name) as reader:
        decoded = [one for one in walk(reader) if isinstance(one, DecodedMessage)]
    assert [one.message.number for one in decoded if one.value is None] == []
    assert [one.message.number for one in decoded if one.is_reply and one.request is None] == []


@pytest.mark.parametrize("scene", ["modetest", "modetest-blob"])
async def test_the_test_picture_is_seen_in_the_trace_alone(scene: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with TraceReader(TRACES / f"{scene}.pcapng") as reader:
        report = await export_frames(reader, 1, 0, folder)
    assert report.same, report.first
    assert folder.finish() > 0
