"""What ``vgpud status`` says of a recording: where to, how much, how much may be, and whether it has ended."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.client import open_client
from server.control_client import status
from server.trace.recording import Recording
from server.trace.ring import MIN_LIMIT, TraceRing
from tests.server.register_device import BAR0, RegisterDevice
from tests.server.running import TRANSPORTS, Server, running_server, with_transport
from tests.server.test_command_line import greet, run, serving
from tests.server.trace.recorded_server import INFO

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

FULL = Path("/dev/full")


@asynccontextmanager
async def recording_server(ring: TraceRing, transport: str) -> AsyncIterator[Server]:
    device = RegisterDevice()
    try:
        options = with_transport(transport, recording=Recording(ring, INFO))
        async with running_server(device, options) as server:
            yield server
    finally:
        ring.close()
        device.close()


async def said_of(server: Server) -> Any:
    return (await status(server.control))["trace"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_recording_says_where_to_and_how_much_is_there(tmp_path: Path, transport: str) -> None:
    file = tmp_path / "boot.pcapng"
    ring = TraceRing(file, MIN_LIMIT)
    async with recording_server(ring, transport) as server:
        nothing = {"file": str(file), "bytes_written": 0, "limit": MIN_LIMIT, "stopped": None}
        assert await said_of(server) == nothing
        async with open_client(server.path) as client:
            await client.region_read(BAR0, 0, 4)
            ring.flush()
            written = file.stat().st_size
            assert written > 0
            assert await said_of(server) == {**nothing, "bytes_written": written}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_recording_on_a_full_disk_has_ended_and_says_why(transport: str) -> None:
    ring = TraceRing(FULL)
    async with recording_server(ring, transport) as server, open_client(server.path) as client:
        await client.region_read(BAR0, 0, 4)
        ring.flush()
        assert await said_of(server) == {
            "file": str(FULL),
            "bytes_written": 0,
            "limit": None,
            "stopped": "No space left on device",
        }


def test_a_disk_that_takes_a_part_has_that_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = TraceRing(tmp_path / "trace")
    write, room = os.write, iter([100, 20])

    def write_what_fits(fd: int, data: memoryview) -> int:
        taken = next(room, None)
        if taken is None:
            del data  # which the traceback would keep
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:taken])

    monkeypatch.setattr(os, "write", write_what_fits)
    ring.append(bytes(1000))
    ring.flush()
    monkeypatch.undo()
    ring.close()
    assert ring.status()["bytes_written"] == (tmp_path / "trace").stat().st_size == 120
    assert ring.status()["stopped"] == "No space left on device"


def test_a_file_whose_name_is_no_text_has_one_all_the_same(tmp_path: Path) -> None:
    ring = TraceRing(tmp_path / os.fsdecode(b"\xff.pcapng"))
    ring.close()
    assert ring.status()["file"] == f"{tmp_path}/\\xff.pcapng"


def test_a_server_says_so_to_people_and_to_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    socket, control = tmp_path / "device", tmp_path / "control"
    where = ("--socket-path", str(socket), "--control", str(control))
    with serving(*where, "--trace", "t.pcapng", "--trace-limit", "8M", ready=control):
        answer = run("status", "--control", str(control), "--json")
        assert json.loads(answer.stdout)["trace"] == {
            "file": str(tmp_path / "t.pcapng"),
            "bytes_written": 0,
            "limit": 8 << 20,
            "stopped": None,
        }
    with serving(*where, "--trace", str(FULL), "--trace-limit", "none", ready=control) as process:
        greet(socket)
        assert process.stderr is not None
        assert any("trace_stopped" in line for line in iter(process.stderr.readline, ""))
        lines = run("status", "--control", str(control)).stdout
    told = ("file: /dev/full", "bytes written: 0", "limit: none", "stopped: No space left on device")
    assert "\ntrace:\n" + "".join(f"  {line}\n" for line in told) in lines
    with serving(*where, ready=control):
        assert "\ntrace: none\n" in run("status", "--control", str(control)).stdout
