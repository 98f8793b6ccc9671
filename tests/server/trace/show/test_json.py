"""``vgpud trace show --json``."""

from __future__ import annotations

import json
from errno import EINVAL
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from protocol import (
    HEADER_SIZE,
    Capabilities,
    Command,
    DeviceFeature,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    Feature,
    FeatureFlags,
    GetRegionInfo,
    Header,
    IrqAction,
    IrqData,
    IrqFlags,
    IrqInfo,
    MsixMappable,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteReply,
    SetIrqs,
    SparseArea,
    SparseMmap,
    Version,
)
from protocol.codec import PackableRequest
from protocol.pcapng import Direction
from server.trace.fd_facts import MessageFacts
from server.trace.pairing import decode
from server.trace.reader import TracedMessage
from server.trace.text.as_json import message_object
from server.trace.text.names import Names
from tests.protocol import strategies
from tests.server.trace.show_files import EVENTFD, MEMFD, START, TraceFile, event
from tests.server.trace.showing import show

COMMON = ("type", "session", "number", "time", "timestamp", "direction", "kind", "command", "message_id")


def objects(
    trace: TraceFile, folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> list[dict[str, Any]]:
    return list(map(json.loads, show(trace.save(folder / "trace"), capsys, "--json", *options)))


def said(one: dict[str, Any]) -> dict[str, Any]:
    """What depends on the command."""
    return {name: value for name, value in one.items() if name not in COMMON}


def test_an_access_and_its_reply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile().request(7, RegionRead(0x16, 4, 2), 10)
    trace.reply(7, Command.REGION_READ, RegionReadReply(0x16, 4, b"\1\0"), 64)

    assert objects(trace, tmp_path, capsys) == [
        {
            "type": "message",
            "session": 1,
            "number": 1,
            "time": 0.0,
            "timestamp": START + 10_000,
            "direction": "client-to-server",
            "kind": "request",
            "command": "REGION_READ",
            "message_id": 7,
            "region": "BAR4",
            "region_index": 4,
            "register": "common.queue_select",
            "offset": 0x16,
            "count": 2,
        },
        {
            "type": "message",
            "session": 1,
            "number": 2,
            "time": 0.000054,
            "timestamp": START + 64_000,
            "direction": "server-to-client",
            "kind": "reply",
            "command": "REGION_READ",
            "message_id": 7,
            "reply_to": 1,
            "latency_us": 54.0,
            "region": "BAR4",
            "region_index": 4,
            "register": "common.queue_select",
            "offset": 0x16,
            "count": 2,
            "data": "0100",
        },
    ]


def test_an_error_has_its_errno_and_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile().request(7, GetRegionInfo(4)).error(7, Command.DEVICE_GET_REGION_INFO, EINVAL, 5)

    request, error = objects(trace, tmp_path, capsys)

    assert said(request) == {"region": "BAR4", "region_index": 4, "argsz": 32}
    assert said(error) == {"reply_to": 1, "latency_us": 5.0, "errno": 22, "errno_name": "EINVAL"}


def test_what_does_not_decode_has_a_reason_and_its_payload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile().raw(1, 14, 0, b"\1\2").raw(2, 1, 5, b"")

    one, other = objects(trace, tmp_path, capsys)

    assert one["command"] == "command 14"
    assert said(one) == {"reason": "there is no command 14", "payload": "0102"}
    assert other["kind"] == "unknown"


def test_fields_of_other_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile()
    trace.request(1, Version(0, 1, Capabilities(max_msg_fds=8)))
    trace.request(
        2, DmaMap(0x1000, 0x2000, DmaMapFlags.READ | DmaMapFlags.WRITE, 0x3000), fds=[MEMFD], twin=True
    )
    trace.request(3, SetIrqs(2, 1, 1, IrqData.EVENTFD, IrqAction.TRIGGER), fds=[EVENTFD])
    trace.request(4, RegionWriteMulti((RegionWrite(0, 1, b"\1"),)), posted=True)
    trace.request(5, DeviceFeature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET))
    trace.request(6, DeviceFeature(77, FeatureFlags.GET, b"\1"))
    trace.request(7, DmaRead(0x5000, 16), server=True)

    got = list(map(said, objects(trace, tmp_path, capsys)))

    assert got[0]["major"] == 0
    assert got[0]["minor"] == 1
    assert got[0]["capabilities"]["max_msg_fds"] == 8
    assert got[0]["capabilities"]["pgsizes"] is None
    assert got[1] == {
        "twin": True,
        "fds": [MEMFD],
        "address": 0x1000,
        "size": 0x2000,
        "flags": ["READ", "WRITE"],
        "offset": 0x3000,
    }
    assert got[2] == {
        "fds": [EVENTFD],
        "irq": "MSIX",
        "irq_index": 2,
        "start": 1,
        "count": 1,
        "action": "TRIGGER",
        "bools": [],
        "data_type": "EVENTFD",
    }
    write = {
        "region": "BAR1",
        "region_index": 1,
        "register": "msix.table[0].address",
        "offset": 0,
        "count": 1,
    }
    assert got[3] == {"posted": True, "writes": [{**write, "data": "01"}]}
    assert got[4] == {"feature": "DMA_LOGGING_STOP", "flags": ["SET"], "data": "", "argsz": 8}
    assert got[5] == {"feature": 77, "flags": ["GET"], "data": "01", "argsz": 9}
    assert got[6] == {"address": 0x5000, "count": 16}


def test_fields_of_other_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile()
    areas = SparseMmap((SparseArea(0x1000, 0x2000),))
    info = RegionInfo(0, RegionFlags.READ, 0x4000, capabilities=(areas, MsixMappable()))
    trace.reply(1, Command.DEVICE_GET_REGION_INFO, info)
    trace.reply(2, Command.DEVICE_GET_IRQ_INFO, IrqInfo(0, IrqFlags.EVENTFD, 1))
    trace.reply(3, Command.REGION_WRITE, RegionWriteReply(0x3000, 4, 2))
    trace.reply(4, Command.DMA_READ, DmaReadReply(0x5000, b"\1\2"), client=True)
    trace.reply(5, Command.DMA_MAP)

    got = list(map(said, objects(trace, tmp_path, capsys)))

    assert got[0] == {
        "region": "BAR0",
        "region_index": 0,
        "flags": ["READ"],
        "size": 0x4000,
        "offset": 0,
        "capabilities": [
            {"kind": "SparseMmap", "areas": [{"offset": 0x1000, "size": 0x2000}]},
            {"kind": "MsixMappable"},
        ],
        "needed": None,
    }
    assert got[1] == {"irq": "INTX", "irq_index": 0, "flags": ["EVENTFD"], "count": 1}
    assert got[2]["register"] == "notify[0]"
    assert got[2]["count"] == 2
    assert got[3] == {"address": 0x5000, "data": "0102"}
    assert got[4] == {}


def test_events_are_there_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile().request(1, GetRegionInfo(0))
    trace.record(3, event(2, 0, 0, 9, 0x40000, b"123456789") + event(3, 0, 2, 0, 1), 10)

    message, access, interrupt = objects(trace, tmp_path, capsys, "--events")

    when = {"session": 1, "time": 0.00001, "timestamp": START + 10_000}
    assert access == {
        "type": "memory",
        **when,
        "access": "write",
        "address": 0x40000,
        "length": 9,
        "in_place": False,
        "data": "313233343536373839",
    }
    assert interrupt == {"type": "interrupt", **when, "irq": "MSIX", "irq_index": 2, "vector": 1}
    assert objects(trace, tmp_path, capsys) == [message]


@given(strategies.requests)
def test_what_a_value_says_hides_nothing_of_the_message(request: PackableRequest) -> None:
    payload = request.pack()
    header = Header(9, request.command, HEADER_SIZE + len(payload))
    message = TracedMessage(5, START, Direction.INBOUND, header, memoryview(payload), MessageFacts())

    one = json.loads(json.dumps(message_object(decode(message), 3, Names("virtio-gpu"), START)))

    assert [one[name] for name in COMMON] == [
        "message",
        3,
        5,
        0.0,
        START,
        "client-to-server",
        "request",
        request.command.name,
        9,
    ]
