"""A session that a server recorded in several files is replayed and exported as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from protocol.trace import SessionInfo, TraceError
from server.client import open_client
from server.trace.reader import TraceReader
from server.trace.recording import Recording
from server.trace.replay.intervals import RecordedSession
from server.trace.ring import TraceRing, numbered
from tests.server.register_device import PAGE
from tests.server.running import TRANSPORTS, running_server, with_transport
from tests.server.trace.replay.sessions import Squares, guest_memory, replayed, square_numbers
from tests.server.trace.test_ring import files_of

LIMIT = 400 << 10
COUNT = PAGE // 16


async def record(path: Path, transport: str) -> None:
    ring, device = TraceRing(path, LIMIT), Squares()
    info = SessionInfo("test", "", transport, memory=True, interrupts=True)
    try:
        options = with_transport(transport, recording=Recording(ring, info))
        async with running_server(device, options) as server:
            with guest_memory() as fd:
                async with open_client(server.path) as client:
                    await square_numbers(client, fd, COUNT)
            while server.engine.session is not None or server.engine.clients_served < 1:
                await trio.lowlevel.checkpoint()
    finally:
        ring.close()
        device.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_session_in_several_files_is_replayed_whole(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.trace.ring.MIN_LIMIT", LIMIT)
    trace = tmp_path / "trace.pcapng"
    await record(trace, transport)
    assert len(files_of(trace)) > 1
    report = await replayed(trace, Squares(), transport=transport)
    assert report.same, report.first
    assert report.interrupts == COUNT

    alone = Path(shutil.copy(numbered(trace, 1), tmp_path / "alone"))
    report = await replayed(alone, Squares(), transport=transport)
    assert report.same, report.first
    assert 0 < report.interrupts < COUNT

    numbered(trace, len(files_of(trace)) - 1).unlink()
    with TraceReader(trace) as reader, pytest.raises(TraceError, match="in a file before"):
        RecordedSession(reader, 1)
