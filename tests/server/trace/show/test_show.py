"""``vgpud trace show``: what is printed of whole files."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from errno import EINVAL
from pathlib import Path

import pytest

from protocol import (
    Capabilities,
    Command,
    DeviceReset,
    MigrationCapability,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    Version,
)
from protocol.pcapng import Direction
from protocol.trace import SessionInfo, digest
from server.cli import main
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing
from tests.server.trace.show_files import GPU, TraceFile, event
from tests.server.trace.showing import show

SECONDS = 60
READ, WRITE, INTERRUPT = 1, 2, 3
STORED_IN_PLACE = 3
MSIX = 2


def one_access(trace: TraceFile, at: int = 0) -> TraceFile:
    trace.request(1, RegionRead(0x14, 4, 1), at)
    return trace.reply(1, Command.REGION_READ, RegionReadReply(0x14, 4, b"\x0f"), at + 20)


def test_a_session_says_who_recorded_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_access(TraceFile(GPU)).save(tmp_path / "trace")

    assert show(path, capsys) == [
        "session 1: recorded by vgpud serve; transport native; device virtio-gpu; with guest memory and interrupts",
        "     1    0.000000 -> REGION_READ              BAR4 common.device_status (1 byte)",
        "     2    0.000020 <- REGION_READ              reply BAR4 common.device_status 0x0f  20.0us",
    ]


def test_every_session_is_announced_and_has_its_own_registers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = one_access(TraceFile(SessionInfo("vgpud trace record")))
    one_access(trace.session(GPU, 1000), 1000)
    one_access(trace.session(SessionInfo("", "virtio-gpu,scanouts=99", continued=True), 2000), 2000)

    lines = show(trace.save(tmp_path / "trace"), capsys)

    assert lines[0] == "session 1: recorded by vgpud trace record; messages only"
    assert lines[1] == "     1    0.000000 -> REGION_READ              BAR4 +0x14 (1 byte)"
    assert lines[3].startswith("session 2: recorded by vgpud serve; ")
    assert lines[4] == "     3    0.001000 -> REGION_READ              BAR4 common.device_status (1 byte)"
    assert lines[6] == (
        "session 3: recorded by somebody; device virtio-gpu,scanouts=99; messages only; "
        "continued: its start is in a file before"
    )
    assert lines[7] == "     5    0.002000 -> REGION_READ              BAR4 +0x14 (1 byte)"


def test_the_configuration_space_of_a_strange_device_has_the_names_of_any_pci_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile(SessionInfo("x", "no such device")).request(1, RegionWrite(4, 7, b"\6\0"))
    trace.request(2, RegionWrite(0x40, 7, b"\6\0"))

    lines = show(trace.save(tmp_path / "trace"), capsys)

    assert lines[1] == "     1    0.000000 -> REGION_WRITE             CONFIG command 0x0006"
    assert lines[2] == "     2    0.000000 -> REGION_WRITE             CONFIG +0x40 0x0006"


def with_events(path: Path) -> Path:
    """A kick that made the device read a page, write two bytes and raise an interrupt."""
    trace = TraceFile().request(1, RegionWrite(0x3000, 4, b"\0\0"), 0, posted=True)
    page = bytes(range(256)) * 16
    place = trace.record(2, digest(page) + len(page).to_bytes(4, "little") + zlib.compress(page))
    stored = digest(page) + place.to_bytes(8, "little")
    lost = digest(b"lost") + (5).to_bytes(8, "little")
    trace.record(
        3,
        event(READ, STORED_IN_PLACE, 0, 4096, 0x10000, stored)
        + event(READ, 1, 0, 4096, 0x20000, lost)
        + event(READ, 0, 0, 0, 0x30000)
        + event(WRITE, 0, 0, 2, 0x40000, b"\1\2")
        + event(INTERRUPT, 0, MSIX, 0, 1),
        10,
    )
    trace.request(2, RegionWrite(0x14, 4, b"\0"), 20, posted=True)
    trace.record(3, event(INTERRUPT, 0, 0, 0, 0), 30)
    return trace.save(path)


def test_events_are_shown_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_events(tmp_path / "trace")

    messages = show(path, capsys)
    lines = show(path, capsys, "--events")

    assert lines[2:7] == [
        (
            "          0.000010    memory read              0x10000-0x10fff (4 KiB) in place "
            "000102030405060708090a0b0c0d0e0f..."
        ),
        "          0.000010    memory read              0x20000-0x20fff (4 KiB) which is not in this file",
        "          0.000010    memory read              0x30000 (0 bytes)",
        "          0.000010    memory write             0x40000-0x40001 (2 bytes) 0x0201",
        "          0.000010    interrupt                MSIX 1",
    ]
    assert lines[8:] == ["          0.000030    interrupt                INTX 0"]
    assert [lines[0], lines[1], lines[7]] == messages


def test_what_the_recorder_writes_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = TraceRing(tmp_path / "trace")
    recorder = Recorder(ring, GPU)
    trace = one_access(TraceFile())
    for block, direction in zip(trace.blocks[-2:], (Direction.INBOUND, Direction.OUTBOUND), strict=True):
        size = int.from_bytes(block[20:24], "little")
        recorder.message(direction, block[28 : 28 + size])
    recorder.interrupt(MSIX, 0)
    recorder.start()
    recorder.flush()
    ring.close()

    lines = show(tmp_path / "trace", capsys, "--events")

    assert len(lines) == 4
    assert " -> REGION_READ              BAR4 common.device_status (1 byte)" in lines[1]
    assert " <- REGION_READ              reply BAR4 common.device_status 0x0f  " in lines[2]
    assert lines[3].endswith(" interrupt                MSIX 0")


def test_a_file_that_was_cut_short_is_shown_up_to_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = one_access(TraceFile())
    whole = show(trace.save(tmp_path / "whole"), capsys)
    lines_behind = {0: 0}
    end = 0
    for count, block in zip((0, 0, 0, 1, 2, 3), trace.blocks, strict=True):
        end += len(block)
        lines_behind[end] = count
    path = tmp_path / "cut"

    for size in range(1, len(trace.data) + 1):
        path.write_bytes(trace.data[:size])
        status = main(["trace", "show", str(path)])
        said = capsys.readouterr()
        last_whole = max(end for end in lines_behind if end <= size)
        assert status == 0
        assert said.out.splitlines() == whole[: lines_behind[last_whole]]
        rest = size - last_whole
        warning = f"vgpud: {path}: cut short: its last {rest} bytes are a block without its end\n"
        assert said.err == (warning if rest else "")


@pytest.mark.parametrize("how", ["--events", "--json", "--stats"])
def test_a_file_that_was_cut_short_is_no_error(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace").write_bytes(one_access(TraceFile()).data[:-5])

    assert main(["trace", "show", how, str(tmp_path / "trace")]) == 0

    said = capsys.readouterr()
    assert "REGION_READ" in said.out
    assert "cut short" in said.err


@pytest.mark.parametrize("how", [[], ["--json"], ["--stats"]])
def test_damage_is_an_error_after_what_comes_before_it(
    how: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = one_access(TraceFile())
    (tmp_path / "trace").write_bytes(trace.data + bytes(12))

    assert main(["trace", "show", *how, str(tmp_path / "trace")]) == 1

    said = capsys.readouterr()
    assert said.out.count("REGION_READ") == (1 if how == ["--stats"] else 2)
    assert said.err == (
        f"vgpud: {tmp_path / 'trace'}: damaged at byte {len(trace.data)}: a block of 0 bytes\n"
    )


def test_what_is_no_trace_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("this is no trace")

    assert main(["trace", "show", str(tmp_path / "text")]) == 1
    assert main(["trace", "show", str(tmp_path / "nothing")]) == 1

    assert capsys.readouterr().err == (
        f"vgpud: {tmp_path / 'text'}: this is not a pcapng file\n"
        f"vgpud: {tmp_path / 'nothing'}: No such file or directory\n"
    )


@pytest.mark.parametrize("how", [["show"], ["show", "--json"], ["show", "--stats"], ["diff", "{path}"]])
@pytest.mark.parametrize("messages", [3, 3000], ids=["short", "long"])
def test_a_reader_that_has_seen_enough_is_no_error(how: list[str], messages: int, tmp_path: Path) -> None:
    trace = TraceFile()
    for _ in range(messages):
        trace.request(1, DeviceReset())
    path = trace.save(tmp_path / "trace")
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    with os.fdopen(writing, "wb") as output:
        process = subprocess.run(
            [
                sys.executable,
                "-m",
                "server",
                "trace",
                *(one.format(path=path) for one in how),
                str(path),
            ],
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
            check=False,
            env=buffered,
        )

    assert process.stderr == b""
    assert process.returncode == 0


def test_lines_come_out_while_the_file_is_read(tmp_path: Path) -> None:
    """The damage at the end is not reached before the reader has gone."""
    trace = TraceFile()
    for _ in range(20000):
        trace.request(1, DeviceReset())
    (tmp_path / "trace").write_bytes(trace.data + bytes(12))
    command = f"{sys.executable} -m server trace show {tmp_path / 'trace'} | head -n 2"

    shown = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert shown.stderr == ""
    assert shown.stdout.splitlines()[1] == "     1    0.000000 -> DEVICE_RESET"


def test_all_commands_are_as_wide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile()
    for command in Command:
        trace.error(1, command, EINVAL)

    lines = show(trace.save(tmp_path / "trace"), capsys)[1:]

    assert {line.index("error EINVAL") for line in lines} == {len("     1    0.000000 <- ") + 25}


def test_an_error_says_which_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile()
    trace.request(1, RegionRead(0x16, 4, 2), 0)
    trace.error(1, Command.REGION_READ, EINVAL, 1234)
    trace.request(2, DeviceReset(), 2000)
    trace.error(2, Command.DEVICE_RESET, 95, 2008)
    trace.error(3, Command.DMA_MAP, 0, 3000)
    trace.error(3, Command.DMA_MAP, 4095, 3000)

    lines = show(trace.save(tmp_path / "trace"), capsys)

    assert lines[2] == (
        "     2    0.001234 <- REGION_READ              error EINVAL: BAR4 common.queue_select (2 bytes)  1234us"
    )
    assert lines[4] == "     4    0.002008 <- DEVICE_RESET             error EOPNOTSUPP  8.0us"
    assert lines[5] == "     5    0.003000 <- DMA_MAP                  error errno 0 [no request]"
    assert lines[6] == "     6    0.003000 <- DMA_MAP                  error errno 4095 [no request]"


def test_a_posted_command_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = TraceFile().request(1, RegionWrite(0, 0, b"\1"), posted=True).save(tmp_path / "trace")

    assert show(path, capsys)[1] == "     1    0.000000 -> REGION_WRITE             BAR0 +0x0 0x01 [posted]"


@pytest.mark.parametrize(
    ("migration", "words"),
    [
        (MigrationCapability(pgsize=4096), "pgsize:4096"),
        (MigrationCapability(max_bitmap_size=256), "max_bitmap_size:256"),
        (MigrationCapability(4096, 256), "pgsize:4096,max_bitmap_size:256"),
    ],
)
def test_of_migration_only_what_was_stated_is_shown(
    migration: MigrationCapability, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile().request(1, Version(0, 0, Capabilities(migration=migration)))

    assert show(trace.save(tmp_path / "trace"), capsys)[1].endswith(f" 0.0 migration={words}")


def test_absolute_times_are_of_the_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = one_access(TraceFile())
    trace.record(3, event(INTERRUPT, 0, 0, 0, 0), 2_000_000)
    lines = show(trace.save(tmp_path / "trace"), capsys, "--absolute", "--events")

    # As date -u -d @1700000000 has it.
    assert lines[1].startswith("     1 2023-11-14T22:13:20.000000Z -> REGION_READ ")
    assert lines[-1] == "       2023-11-14T22:13:22.000000Z    interrupt                INTX 0"
