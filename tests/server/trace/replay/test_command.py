"""What ``vgpud trace replay`` says, and with which exit status it ends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from devices.models import MODELS
from devices.registry import create_device
from protocol import Command, RegionRead, RegionReadReply
from protocol.trace import SessionInfo
from server.cli import main
from server.client import VfioUserClient
from server.trace.recorder import Recorder
from server.trace.replay import command
from server.trace.ring import TraceRing
from tests.server.register_device import BAR0, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.replay.sessions import record
from tests.server.trace.replay.traces import made_up

EDU = 0x010000ED
"""What a read of edu's BAR0 gives (QEMU, docs/specs/edu.rst, identification register; 0xRRrr00ed)."""


def wrong_reads(path: Path, count: int, *, sessions: int = 1) -> Path:
    """A trace of an edu that says 0 where a real one has its identification."""
    with made_up(path, device="edu", sessions=sessions) as trace:
        for _ in range(count):
            trace.ask(RegionRead(0, BAR0, 4))
            trace.reply(Command.REGION_READ, RegionReadReply(0, BAR0, bytes(4)))
    return path


def replay(*arguments: str | Path) -> int:
    return main(["trace", "replay", *map(str, arguments)])


def test_the_exit_status_does_not_depend_on_who_reads(tmp_path: Path) -> None:
    trace = wrong_reads(tmp_path / "trace", 3)
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "trace", "replay", "--serve", "recorded", str(trace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait() == 1
    assert said == b""


def test_all_names_every_divergence_and_otherwise_only_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = wrong_reads(tmp_path / "trace", 3)
    assert replay("--serve", "recorded", trace) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"message 4: data is {EDU:#010x}, and was 0x00000000" in lines
    assert lines[-2] == "2 more divergences"
    assert replay("--serve", "recorded", "--all", trace) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("message ")] == [
        "message 4",
        "message 6",
        "message 8",
    ]
    assert not any("more divergence" in line for line in lines)


def test_what_there_is_one_of_is_said_in_the_singular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay("--serve", "recorded", wrong_reads(tmp_path / "trace", 2)) == 1
    assert "\n1 more divergence\n" in capsys.readouterr().out
    with made_up(tmp_path / "short"):
        pass
    assert replay("--serve", "edu", tmp_path / "short") == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "1 message sent; 1 reply, 0 requests, 0 writes to guest memory and 0 interrupts compared"
    )


def test_replies_in_the_context_have_their_requests_though_these_are_further_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace"
    with made_up(path, device="edu") as trace:
        for message_id in range(10):
            trace.ask(RegionRead(0, BAR0, 4), message_id=message_id)
        for message_id in range(10):
            data = bytes(4) if message_id == 9 else EDU.to_bytes(4, "little")
            trace.reply(Command.REGION_READ, RegionReadReply(0, BAR0, data), message_id=message_id)
    assert replay("--serve", "recorded", path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("<- REGION_READ              reply BAR0" in line for line in lines) == 6
    assert not any("no request" in line for line in lines)


def test_what_was_as_recorded_before_the_damage_is_not_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with made_up(tmp_path / "trace", device="edu"):
        pass
    with (tmp_path / "trace").open("ab") as file:
        file.write(b"\6\0\0\0\x10\0\0\0garbagegarbage!!")
    assert replay("--serve", "recorded", tmp_path / "trace") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("compared: as recorded up to there")


def test_what_was_found_before_the_damage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = wrong_reads(tmp_path / "trace", 3)
    with trace.open("ab") as file:
        file.write(b"\6\0\0\0\x10\0\0\0garbagegarbage!!")
    assert replay("--serve", "recorded", trace) == 1
    said = capsys.readouterr()
    assert "message 4: data is" in said.out
    assert f"stopped: {command.CANNOT_BE_READ}" in said.out
    assert "4 messages sent" in said.out
    assert said.err.startswith(f"vgpud: {trace}: ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", "there is no such socket: start the server first"),
        ("file", "nobody listens on this socket: start the server first"),
        ("x" * 200, "this is too long for the path of a socket, which has at most 107 bytes"),
    ],
)
def test_why_there_is_no_connection_is_said_with_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (tmp_path / "file").touch()
    trace = wrong_reads(tmp_path / "trace", 1)
    assert replay("--connect", tmp_path / name, trace) == 1
    assert capsys.readouterr().err == f"vgpud: {tmp_path / name}: {said}\n"


@pytest.mark.parametrize("session", ["0", "-1", "one", ""])
def test_sessions_count_from_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], session: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        replay("--serve", "recorded", f"--session={session}", tmp_path / "trace")
    assert "they count from 1" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "soon"])
def test_a_timeout_is_a_number_of_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        replay("--serve", "recorded", f"--timeout={seconds}", tmp_path / "trace")
    assert "write seconds" in capsys.readouterr().err


def test_each_session_is_reported_and_one_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = wrong_reads(tmp_path / "trace", 1, sessions=3)
    assert replay("--serve", "recorded", trace) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("session")] == ["session 2:", "session 3:"]
    assert sum("all as recorded" in line for line in lines) == 2
    assert replay("--serve", "recorded", "--session", "2", trace) == 0
    assert replay("--serve", "recorded", "--session", "3", trace) == 1
    capsys.readouterr()
    assert replay("--serve", "recorded", "--session", "4", trace) == 1
    assert capsys.readouterr().err == f"vgpud: {trace}: it has 3 sessions, so no session 4\n"


async def two_sessions(folder: Path) -> Path:
    """One leaves something in a register, and the other finds it."""

    async def write(client: VfioUserClient, _fd: int) -> None:
        await client.region_write(BAR0, 4, b"\x05\0\0\0")

    async def read(client: VfioUserClient, _fd: int) -> None:
        assert await client.region_read(BAR0, 4, 4) == b"\xfa\xff\xff\xff"

    return await record(folder, create_device(MODELS, "edu"), write, read, device_text="edu")


async def test_a_session_finds_what_those_before_it_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = await two_sessions(tmp_path)
    capsys.readouterr()
    how = ["trace", "replay", "--serve", "recorded", "--session", "2", str(trace)]
    assert await trio.to_thread.run_sync(main, how) == 0
    assert capsys.readouterr().out.startswith("2 messages sent; 2 replies")


async def test_with_connect_it_is_said_that_the_server_may_have_to_be_brought_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = await two_sessions(tmp_path)
    async with running_server(RegisterDevice()) as server:
        how = ["trace", "replay", "--connect", str(server.path), "--session", "2", str(trace)]
        assert await trio.to_thread.run_sync(main, how) == 1
    assert "the sessions before this one left something in the device" in capsys.readouterr().out


def test_a_session_after_one_without_its_beginning_can_be_replayed_by_its_number(tmp_path: Path) -> None:
    info = SessionInfo("test", "edu", memory=True)
    path = tmp_path / "trace"
    ring = TraceRing(path)
    for one in (replace(info, continued=True), info):
        recorder = Recorder(ring, one)
        recorder.start()
        recorder.flush()
    ring.close()
    assert replay("--serve", "recorded", "--session", "2", path) == 0
    assert replay("--serve", "recorded", path) == 1
