"""Which messages ``vgpud trace show`` shows."""

from __future__ import annotations

import json
from errno import EINVAL
from pathlib import Path

import pytest

from protocol import (
    Command,
    DeviceReset,
    GetRegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
)
from server.cli import main
from tests.server.trace.show_files import TraceFile, event
from tests.server.trace.showing import show

INTERRUPT = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    trace = TraceFile()
    trace.request(1, GetRegionInfo(4), 0)  # 1
    trace.error(1, Command.DEVICE_GET_REGION_INFO, EINVAL, 10)  # 2
    trace.request(2, RegionRead(0, 4, 4), 1_000_000)  # 3
    trace.reply(2, Command.REGION_READ, RegionReadReply(0, 4, bytes(4)), 1_000_010)  # 4
    trace.request(3, RegionRead(0, 7, 4), 2_000_000)  # 5
    trace.request(4, RegionWrite(0, 4, b"\1"), 2_000_001)  # 6
    trace.error(3, Command.REGION_READ, EINVAL, 2_000_010)  # 7
    trace.error(4, Command.REGION_WRITE, EINVAL, 2_000_011)  # 8
    trace.record(3, event(INTERRUPT, 0, 2, 0, 0), 2_000_020)
    trace.request(5, RegionWriteMulti((RegionWrite(0, 1, b"\1"), RegionWrite(0, 2, b"\1"))), 3_000_000)  # 9
    trace.reply(5, Command.REGION_WRITE_MULTI, RegionWriteMultiReply(2), 3_000_010)  # 10
    trace.record(3, event(INTERRUPT, 0, 2, 0, 1), 3_000_020)
    trace.request(6, DeviceReset(), 4_000_000)  # 11
    return trace.save(tmp_path / "trace")


CHOICES = [
    ([], list(range(1, 12))),
    (["--command", "region_read"], [3, 4, 5, 7]),
    (["--command", "REGION_READ", "--command", "Device_Reset"], [3, 4, 5, 7, 11]),
    (["--region", "BAR4"], [3, 4, 6, 8]),
    (["--region", "4", "--region", "config"], [3, 4, 5, 6, 7, 8]),
    (["--region", "2"], [9, 10]),
    (["--region", "12"], []),
    (["--errors"], [1, 2, 5, 7, 6, 8]),
    (["--since", "2"], [5, 6, 7, 8, 9, 10, 11]),
    (["--since", "2.000005"], [7, 8, 9, 10, 11]),
    (["--errors", "--since", "2.000001"], [7, 6, 8]),
    (["--until", "2"], [1, 2, 3, 4, 5]),
    (["--until", "-1"], []),
    (["--since", "1", "--until", "2.000001"], [3, 4, 5, 6]),
    (["--register", "vendor_id"], [5, 7]),
    (["--register", "COMMON.*"], [3, 4, 6, 8]),
    (["--register", "vendor_id", "--register", "common.device_feature_select"], [3, 4, 5, 6, 7, 8]),
    (["--register", "*", "--region", "4", "--command", "REGION_WRITE"], [6, 8]),
    (["--session", "1", "--since", "4"], [11]),
    (["--errors", "--command", "REGION_READ"], [5, 7]),
    (["--errors", "--region", "BAR4"], [6, 8]),
    (["--region", "BAR4", "--command", "REGION_WRITE"], [6, 8]),
    (["--region", "CONFIG", "--command", "REGION_READ", "--since", "2", "--errors"], [5, 7]),
]


@pytest.mark.parametrize(("options", "numbers"), CHOICES, ids=[" ".join(one[0]) or "all" for one in CHOICES])
def test_filters_combine(
    options: list[str], numbers: list[int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, *lines = show(path, capsys, *options)

    assert session.startswith("session 1: ")
    assert [int(line[:6]) for line in lines] == numbers
    objects = map(json.loads, show(path, capsys, "--json", *options))
    assert [one["number"] for one in objects] == numbers
    assert f"messages      {len(numbers)} in " in show(path, capsys, "--stats", *options)[1]


@pytest.mark.parametrize(
    ("options", "vectors"),
    [
        ([], [0, 1]),
        (["--region", "BAR4"], [0]),
        (["--errors"], [0]),
        (["--command", "REGION_WRITE_MULTI"], [1]),
        (["--command", "DEVICE_RESET"], []),
        (["--since", "3"], [1]),
        (["--since", "2.000015"], [0, 1]),
    ],
)
def test_events_are_shown_behind_the_messages_that_are(
    options: list[str], vectors: list[int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = show(path, capsys, "--events", *options)
    objects = map(json.loads, show(path, capsys, "--json", "--events", *options))

    assert [int(line.split()[-1]) for line in lines if "interrupt  " in line] == vectors
    assert [one["vector"] for one in objects if one["type"] == "interrupt"] == vectors
    assert f"interrupts    {len(vectors)}" in show(path, capsys, "--stats", *options)[4]


@pytest.mark.parametrize(
    ("options", "count"),
    [([], "1 request: 11"), (["--command", "REGION_READ"], "0 requests"), (["--errors"], "0 requests")],
)
def test_requests_without_a_reply_are_those_that_are_wanted(
    options: list[str], count: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(path, capsys, "--stats", *options)[5] == f"no reply      {count}"


def test_a_reply_has_its_time_though_its_request_is_not_shown(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = show(path, capsys, "--since", "2.000005")

    assert (
        lines[1]
        == "     7    2.000010 <- REGION_READ              error EINVAL: CONFIG vendor_id (4 bytes)  10.0us"
    )


def test_an_unknown_command_is_an_error_that_lists_the_commands(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "show", "--command", "region_reed", str(path)]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "vgpud: there is no command 'region_reed'; there are: VERSION, DMA_MAP, DMA_UNMAP, DEVICE_GET_INFO, "
        "DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, REGION_READ, "
        "REGION_WRITE, DMA_READ, DMA_WRITE, DEVICE_RESET, REGION_WRITE_MULTI, DEVICE_FEATURE, MIG_DATA_READ, "
        "MIG_DATA_WRITE\n"
    )


@pytest.mark.parametrize("name", ["BAR6", "-1", "", "9" * 5000, "0x4"])
def test_an_unknown_region_is_an_error_that_lists_the_regions(
    name: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "show", f"--region={name}", str(path)]) == 1

    assert capsys.readouterr().err == (
        f"vgpud: there is no region {name!r}; "
        "there are: BAR0, BAR1, BAR2, BAR3, BAR4, BAR5, ROM, CONFIG, VGA, and numbers\n"
    )


def test_one_session_is_shown_by_its_number(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile().request(1, DeviceReset(), 0).session(at=5).request(1, RegionRead(0, 4, 4), 5)
    trace.session(at=9).request(1, DeviceReset(), 9)
    trace.save(path)

    lines = show(path, capsys, "--session", "2")

    assert len(lines) == 2
    assert lines[0].startswith("session 2: ")
    assert lines[1].startswith("     2    0.000005 -> REGION_READ ")
    assert show(path, capsys, "--stats", "--session", "2")[:2] == [
        "sessions      1",
        "messages      1 in 0.000000 s",
    ]
    assert show(path, capsys, "--stats", "--session", "1")[5] == "no reply      1 request: 1"


@pytest.mark.parametrize("how", [[], ["--json"], ["--stats"]])
def test_a_session_that_there_is_not_is_an_error(
    how: list[str], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "show", "--session", "2", *how, str(path)]) == 1

    assert capsys.readouterr().err == "vgpud: there is no session 2; the trace has 1\n"


def test_a_register_that_nothing_accesses_is_an_error(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "show", "--register", "device_statsu", str(path)]) == 1

    assert capsys.readouterr().err == (
        "vgpud: no message accesses a register 'device_statsu'; "
        "names are as they are shown: common.device_status; or patterns: common.*\n"
    )


def test_a_register_whose_accesses_are_not_chosen_is_none(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(show(path, capsys, "--register", "vendor_id", "--region", "BAR4")) == 1


@pytest.mark.parametrize("option", ["--since", "--until"])
@pytest.mark.parametrize("time", ["nan", "inf", "-inf", "", "now", "1e999"])
def test_a_time_that_is_no_number_is_refused(
    option: str, time: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["trace", "show", f"{option}={time}", str(path)])

    assert f"argument {option}: {time!r} is no number of seconds" in capsys.readouterr().err
