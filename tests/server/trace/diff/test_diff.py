"""``vgpud trace diff``: what is printed, and the exit status."""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path

import pytest

from protocol import (
    Capabilities,
    Command,
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    GetRegionInfo,
    IrqAction,
    IrqData,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    SetIrqs,
    Version,
)
from protocol.codec import PackableRequest
from protocol.trace import SessionInfo
from server.cli import main
from server.trace.diff import command as diff_module
from server.trace.diff import sides
from server.trace.diff.alignment import MAX_CHANGES
from tests.server.trace.show_files import EVENTFD, GPU, MEMFD, TraceFile, event

STRANGER = SessionInfo("somebody else", transport="libvfio-user")


def diff(
    a: TraceFile, b: TraceFile, folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, list[str]]:
    """The exit status, and the lines behind the names of the files."""
    paths = [str(trace.save(folder / name)) for name, trace in (("a", a), ("b", b))]
    status = main(["trace", "diff", *options, *paths])
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    if status:
        assert lines[:2] == [f"--- {paths[0]}", f"+++ {paths[1]}"]
        return status, lines[2:]
    return status, lines


def reads(values: list[int], info: SessionInfo = GPU) -> TraceFile:
    """Reads of one register, and what was read; odd numbers are the requests, even ones the replies."""
    trace = TraceFile(info)
    for number, value in enumerate(values):
        trace.request(number, RegionRead(0x14, 4, 1), 10 * number)
        trace.reply(number, Command.REGION_READ, RegionReadReply(0x14, 4, bytes([value])), 10 * number + 1)
    return trace


def asks(numbers: list[int], info: SessionInfo = GPU) -> TraceFile:
    """Messages that are not versions of each other: questions about regions."""
    trace = TraceFile(info)
    for number in numbers:
        trace.request(1, GetRegionInfo(number), posted=True)
    return trace


def test_the_same_messages_at_other_times_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = TraceFile(GPU), TraceFile(STRANGER)
    mapping = DmaMap(0, 4096, DmaMapFlags.READ)
    a.request(1, mapping, 10, fds=[MEMFD]).reply(1, Command.DMA_MAP, b"", 20)
    b.request(9, mapping, 77, fds=[{**MEMFD, "inode": 9, "size": 4096}], twin=True)
    b.record(3, event(3, 0, 0, 0, 0))
    b.reply(9, Command.DMA_MAP, b"", 999)

    assert diff(a, b, tmp_path, capsys) == (0, ["2 messages equal, 0 differ, 0 only in A, 0 only in B"])


def test_a_message_with_another_value_is_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = diff(reads([1, 2, 3, 4]), reads([1, 2, 7, 4]), tmp_path, capsys)

    assert status == 1
    assert lines == [
        "@@ message 4 of A, 4 of B @@",
        "      4    0.000011 <- REGION_READ              reply BAR4 common.device_status 0x02",
        "      5    0.000020 -> REGION_READ              BAR4 common.device_status (1 byte)",
        "~     6    0.000021 <- REGION_READ              reply BAR4 common.device_status 0x03",
        "~     6    0.000021 <- REGION_READ              reply BAR4 common.device_status 0x07  [data: 0x03 -> 0x07]",
        "      7    0.000030 -> REGION_READ              BAR4 common.device_status (1 byte)",
        "      8    0.000031 <- REGION_READ              reply BAR4 common.device_status 0x04",
        "7 messages equal, 1 differ, 0 only in A, 0 only in B",
    ]


def test_messages_that_only_one_has_are_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = list(range(100)), list(range(100))
    a[50:50] = [1000]
    b[20:20] = [2000, 2001]

    status, lines = diff(asks(a), asks(b), tmp_path, capsys, "--context", "1")

    assert status == 1
    assert lines[0] == "@@ message 20 of A, 20 of B @@"
    assert lines[5] == "@@ message 50 of A, 52 of B @@"
    assert [(line[:7], line.partition("region ")[2]) for line in lines[1:5] + lines[6:9]] == [
        ("     20", "19 [posted]"),
        ("+    21", "2000 [posted]"),
        ("+    22", "2001 [posted]"),
        ("     21", "20 [posted]"),
        ("     50", "49 [posted]"),
        ("-    51", "1000 [posted]"),
        ("     52", "50 [posted]"),
    ]
    assert lines[-1] == "100 messages equal, 0 differ, 1 only in A, 2 only in B"


@pytest.mark.parametrize(("context", "expected"), [(0, 1), (1, 3), (3, 7)])
def test_context_is_as_long_as_asked_for(
    context: int, expected: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = list(range(20))

    _, lines = diff(
        asks(numbers), asks([*numbers[:10], *numbers[11:]]), tmp_path, capsys, f"--context={context}"
    )

    assert lines[0] == f"@@ message {11 - context} of A, {11 - context} of B @@"
    assert len(lines) == 1 + expected + 1


@pytest.mark.parametrize("context", ["-1", "9" * 20, "10001", "x", "", "1.5"])
def test_a_context_that_is_no_number_of_messages_is_refused(
    context: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["trace", "diff", f"--context={context}", str(tmp_path / "a"), str(tmp_path / "b")])

    assert f"{context!r} is no number of messages from 0 to 10000" in capsys.readouterr().err


def test_near_differences_share_their_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = list(range(20))
    fewer = [number for number in numbers if number not in (8, 12)]

    _, lines = diff(asks(numbers), asks(fewer), tmp_path, capsys)

    assert [line[0] for line in lines[:-1]] == ["@", " ", " ", "-", " ", " ", " ", "-", " ", " "]


def test_a_reply_that_fails_in_one_is_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (TraceFile().request(1, RegionRead(0x14, 4, 1)) for _ in range(2))
    a.reply(1, Command.REGION_READ, RegionReadReply(0x14, 4, b"\1"), 5)
    b.error(1, Command.REGION_READ, EINVAL, 5)

    _, lines = diff(a, b, tmp_path, capsys, "--context", "0")

    assert lines[1:3] == [
        "~     2    0.000005 <- REGION_READ              reply BAR4 common.device_status 0x01",
        (
            "~     2    0.000005 <- REGION_READ              error EINVAL: BAR4 common.device_status (1 byte)"
            "  [outcome: success -> EINVAL]"
        ),
    ]


MAP = DmaMap(0x1000, 0x1000, DmaMapFlags.READ)
FIELDS: list[tuple[PackableRequest, PackableRequest, str]] = [
    (MAP, DmaMap(0x2000, 0x1000, DmaMapFlags.NONE), "address: 0x1000 -> 0x2000; flags: READ -> none"),
    (
        Version(0, 1, Capabilities(max_msg_fds=8)),
        Version(0, 1, Capabilities(pgsizes=4096)),
        "capabilities.max_msg_fds: 8 -> none; capabilities.pgsizes: none -> 4096",
    ),
    (
        SetIrqs(2, 0, 3, IrqData.NONE, IrqAction.MASK),
        SetIrqs(2, 0, 3, IrqData.NONE, IrqAction.UNMASK),
        "action: MASK -> UNMASK",
    ),
    (RegionWrite(0, 4, b"\1"), RegionWrite(0, 4, b"\1\0"), "data: 0x01 -> 0x0001"),
    (
        RegionWrite(0, 4, bytes(20)),
        RegionWrite(0, 4, bytes(17) + b"\7\0\1"),
        "data: 2 bytes from +0x11 on, 0x00 -> 0x07",
    ),
]


@pytest.mark.parametrize(("one", "other", "words"), FIELDS, ids=[words for _, _, words in FIELDS])
def test_the_fields_that_differ_are_named(
    one: PackableRequest,
    other: PackableRequest,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, lines = diff(TraceFile().request(1, one), TraceFile().request(1, other), tmp_path, capsys)

    assert lines[2].startswith("~     1 ")
    assert lines[3].endswith(f"  [{words}]")


def test_what_is_beside_the_payload_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write = RegionWrite(0, 4, b"\1")
    a = TraceFile().request(1, write, posted=True).request(1, MAP, fds=[MEMFD]).raw(1, 14, 0, b"\1\2")
    b = TraceFile().request(1, write).request(1, MAP, fds=[EVENTFD, MEMFD]).raw(1, 14, 0, b"\1\3")

    _, lines = diff(a, b, tmp_path, capsys)

    assert [line.rpartition("  [")[2] for line in lines if line[0] == "~"][1::2] == [
        "posted: yes -> no]",
        "fds: memfd -> eventfd, memfd]",
        "payload: 0x0201 -> 0x0301]",
    ]


def test_other_directions_and_commands_are_other_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = TraceFile().request(1, DeviceReset())
    b = TraceFile().request(1, DeviceReset(), server=True)

    _, lines = diff(a, b, tmp_path, capsys)

    assert lines[-1] == "0 messages equal, 0 differ, 1 only in A, 1 only in B"


def test_a_session_that_only_one_has_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = asks([1]).session(GPU), asks([1]).session(SessionInfo("x", continued=True))

    status, lines = diff(a, b, tmp_path, capsys, "--context", "0")

    assert status == 1
    assert lines == [
        "@@ message 2 of A, 2 of B @@",
        (
            "-session 2: recorded by vgpud serve; transport native; device virtio-gpu; "
            "with guest memory and interrupts"
        ),
        "1 message equal, 0 differ, 0 only in A, 0 only in B",
    ]


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sides, "MAX_ITEMS", 100)
    monkeypatch.setattr(diff_module, "MAX_ITEMS", 100)
    return 100


@pytest.mark.parametrize("swapped", [False, True])
def test_a_difference_that_is_longer_than_the_window_is_reported_and_overcome(
    swapped: bool, short_window: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = list(range(400))
    inserted = list(range(1000, 1000 + 5 * short_window))
    longer = asks(common[:200] + inserted + common[200:])
    a, b = (longer, asks(common)) if swapped else (asks(common), longer)

    _, lines = diff(a, b, tmp_path, capsys, "--context", "0")

    skipped = "500 messages of A and 0 of B" if swapped else "0 messages of A and 500 of B"
    assert lines[1] == f"# {skipped}, behind which they are equal again"
    sign = "-" if swapped else "+"
    assert [line[0] for line in lines[2:-1]] == [sign] * 500
    only = "500 only in A, 0 only in B" if swapped else "0 only in A, 500 only in B"
    assert lines[-1] == f"400 messages equal, 0 differ, {only}"


def test_traces_that_do_not_meet_again_are_given_up_in_growing_parts(
    short_window: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = diff(
        asks(list(range(1000))), asks(list(range(2000, 2500))), tmp_path, capsys, "--context", "0"
    )

    assert [line for line in lines if line[0] == "#"] == [
        f"# A and B are not found to be equal again; the next {most} messages of each"
        for most in (100, 200, 400)
    ]
    assert lines[-1] == "0 messages equal, 0 differ, 1000 only in A, 500 only in B"


def test_long_messages_fill_the_window_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sides, "MAX_BYTES", 1000)
    common = [RegionWrite(number, 0, bytes(400)) for number in range(40)]
    new = [RegionWrite(number, 1, bytes(400)) for number in range(2 * MAX_CHANGES)]
    a, b = TraceFile(), TraceFile()
    for write in common:
        a.request(1, write)
    for write in [*common[:1], *new, *common[1:]]:
        b.request(1, write)

    _, lines = diff(a, b, tmp_path, capsys)

    # Of messages without a limit so many could be held that no search in the files would be needed.
    assert f"# 0 messages of A and {len(new)} of B, behind which they are equal again" in lines
    assert lines[-1] == f"40 messages equal, 0 differ, 0 only in A, {len(new)} only in B"


def test_files_that_were_cut_short_are_compared_up_to_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(asks([1, 2, 3]).data[:-4])
    (tmp_path / "b").write_bytes(asks([1, 2]).data)

    assert main(["trace", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0

    said = capsys.readouterr()
    assert said.out == "2 messages equal, 0 differ, 0 only in A, 0 only in B\n"
    assert said.err.startswith(f"vgpud: {tmp_path / 'a'}: cut short: its last ")


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_damage_is_an_error_after_what_comes_before_it(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        data = asks([1, 5, 3] if name == damaged else [1, 2, 3, *range(100)]).data
        (tmp_path / name).write_bytes(data + bytes(12) if name == damaged else data)

    assert main(["trace", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1

    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "2 messages equal, 0 differ, 1 only in A, 1 only in B"
    assert said.err.startswith(f"vgpud: {tmp_path / damaged}: damaged at byte ")
