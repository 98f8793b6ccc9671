"""``vgpud trace show --stats``."""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import Command, DeviceReset, RegionRead, RegionReadReply, RegionWrite
from server.trace.show.histogram import Histogram
from tests.server.trace.show_files import TraceFile, event
from tests.server.trace.showing import show


def rows(lines: list[str]) -> dict[str, list[str]]:
    """The numbers of each command."""
    start = next(place for place, line in enumerate(lines) if line.startswith("command ")) + 1
    table = lines[start : lines.index("", start)]
    return {line[:24].strip(): line[24:].split() for line in table}


def test_counts_latencies_and_bytes_are_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile()
    for number in range(100):
        # Replies take 1 us, 2 us, ... 100 us. A request has 16 + 16 bytes, its reply 16 + 16 + 4.
        trace.request(number, RegionRead(0, 4, 4), 1000 * number)
        reply = RegionReadReply(0, 4, bytes(4))
        trace.reply(number, Command.REGION_READ, reply, 1000 * number + number + 1)
    trace.request(1, RegionWrite(0, 4, b"\1"), 100_000, posted=True)
    trace.request(2, RegionWrite(0, 4, b"\1"), 100_001)
    trace.error(2, Command.REGION_WRITE, EINVAL, 100_003)
    trace.request(3, DeviceReset(), 100_004)
    trace.raw(4, 77, 0, b"", 100_005)

    lines = show(trace.save(tmp_path / "trace"), capsys, "--stats")

    assert lines[:6] == [
        "sessions      1",
        "messages      205 in 0.100005 s",
        "bytes         3298 from the client, 3616 from the server",
        "guest memory  0 reads of 0 bytes, 0 writes of 0 bytes",
        "interrupts    0",
        "no reply      2 requests: 204, 205",
    ]
    table = rows(lines)
    headings = " ".join(lines[7].split())
    assert headings == "command requests posted replies errors unanswered bytes p50 us p90 us p99 us max us"
    assert table["REGION_READ"][:6] == ["100", "0", "100", "0", "0", "6800"]
    percentiles = [float(number) for number in table["REGION_READ"][6:]]
    assert percentiles == pytest.approx([50, 90, 99, 100], rel=0.03)
    assert table["REGION_WRITE"] == ["2", "1", "1", "1", "0", "82", "2.0", "2.0", "2.0", "2.0"]
    assert table["DEVICE_RESET"] == ["1", "0", "0", "0", "1", "16"]
    assert table["other commands"] == ["1", "0", "0", "0", "1", "16"]
    assert table["all"][:6] == ["104", "1", "101", "1", "2", "6914"]


def test_the_longest_gaps_are_listed_with_the_messages_around_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile()
    at = 0
    for milliseconds in (0, 3, 1, 6, 2, 5, 4, 7):
        at += 1000 * milliseconds
        trace.request(1, DeviceReset(), at)
    trace.session(at=at).request(1, DeviceReset(), at + 1_000_000)

    lines = show(trace.save(tmp_path / "trace"), capsys, "--stats")

    assert lines[lines.index("longest gaps between messages") + 1 :] == [
        "      0.007000 s from message 7 to 8, which came at 0.028000 s",
        "      0.006000 s from message 3 to 4, which came at 0.010000 s",
        "      0.005000 s from message 5 to 6, which came at 0.017000 s",
        "      0.004000 s from message 6 to 7, which came at 0.021000 s",
        "      0.003000 s from message 1 to 2, which came at 0.003000 s",
    ]


def test_gaps_are_those_in_the_whole_trace_before_what_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile().request(1, DeviceReset(), 0)
    trace.request(2, RegionRead(0, 4, 4), 2_000_000)
    trace.request(3, DeviceReset(), 2_000_500)
    trace.error(3, Command.DEVICE_RESET, EINVAL, 2_000_900)
    path = trace.save(tmp_path / "trace")

    def gaps(*options: str) -> list[str]:
        lines = show(path, capsys, "--stats", *options)
        return lines[lines.index("longest gaps between messages") + 1 :]

    reset = [
        "      0.000500 s from message 2 to 3, which came at 2.000500 s",
        "      0.000400 s from message 3 to 4, which came at 2.000900 s",
    ]
    assert gaps("--command", "DEVICE_RESET") == reset
    assert gaps("--since", "2.0001") == reset
    assert gaps("--errors") == reset[1:]
    assert gaps("--region", "BAR4") == ["      2.000000 s from message 1 to 2, which came at 2.000000 s"]


def test_a_clock_that_was_set_back_makes_no_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile()
    for at in (10, 5, 8):
        trace.request(1, DeviceReset(), at)

    lines = show(trace.save(tmp_path / "trace"), capsys, "--stats")

    assert lines[-2:] == [
        "longest gaps between messages",
        "      0.000003 s from message 2 to 3, which came at -0.000002 s",
    ]


def test_guest_memory_and_interrupts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile().request(1, DeviceReset())
    reads = event(1, 0, 0, 3, 0, b"abc") + event(1, 0, 0, 4, 0, b"defg")
    trace.record(3, reads + event(2, 0, 0, 1, 0, b"h") + 3 * event(3, 0, 2, 0, 1) + event(3, 0, 0, 0, 0))

    lines = show(trace.save(tmp_path / "trace"), capsys, "--stats")

    assert lines[3] == "guest memory  2 reads of 7 bytes, 1 write of 1 byte"
    assert lines[4] == "interrupts    4 (INTX 1, MSIX 3)"


def test_only_the_first_requests_without_a_reply_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile()
    for _ in range(12):
        trace.request(1, DeviceReset())

    lines = show(trace.save(tmp_path / "trace"), capsys, "--stats")

    assert lines[5] == "no reply      12 requests: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..."


def test_a_clock_that_was_set_back_makes_no_negative_latency(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile().request(1, DeviceReset(), 50).reply(1, Command.DEVICE_RESET, b"", 20)

    lines = show(trace.save(tmp_path / "trace"), capsys, "--stats")

    assert lines[1] == "messages      2 in 0.000030 s"
    assert rows(lines)["DEVICE_RESET"][6:] == ["0.0", "0.0", "0.0", "0.0"]


def test_an_empty_trace_has_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(TraceFile().save(tmp_path / "trace"), capsys, "--stats")

    assert lines[1] == "messages      0 in 0.000000 s"
    assert rows(lines) == {"all": ["0"] * 6}


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200), st.integers(1, 100))
def test_percentiles_are_near_those_of_the_sorted_numbers(numbers: list[int], percent: int) -> None:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)

    exact = sorted(numbers)[-(-len(numbers) * percent // 100) - 1]

    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.033)
    assert histogram.percentile(percent) <= histogram.greatest == max(numbers)


def test_small_numbers_are_exact() -> None:
    histogram = Histogram()
    for number in range(64):
        histogram.add(number)

    assert [histogram.percentile(percent) for percent in (50, 100)] == [31, 63]
    assert Histogram().percentile(50) == 0
