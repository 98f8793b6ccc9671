"""A recording that went on in new files is read as one trace, and files that are not of one are not."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.trace import Access, SessionInfo
from server.cli import main
from server.trace.content_index import ContentIndex
from server.trace.reader import TracedEvents, TracedMessage, TracedSession, TraceReader
from server.trace.recorder import Recorder
from server.trace.ring import FILES, MIN_LIMIT, TraceRing, numbered
from tests.server.trace.test_recorder import IN, INFO, PAGE, message_of
from tests.server.trace.test_ring import files_of

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

COUNT = 60
"""Messages of a session that is in three files."""


def page(number: int) -> bytes:
    return bytes([number]) * PAGE


def record(ring: TraceRing, count: int = COUNT) -> None:
    """A session: each message has behind it what the device read, which is stored once per file."""
    recorder = Recorder(ring, INFO)
    recorder.start()
    for number in range(count):
        recorder.message(IN, message_of(number, 50_000))
        recorder.read(number * PAGE, page(number % 3))
    recorder.flush()


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    file = tmp_path / "trace"
    ring = TraceRing(file, MIN_LIMIT)
    record(ring)
    ring.close()
    assert len(files_of(file)) == 3
    return file


def read(path: Path) -> tuple[list[SessionInfo], list[int], list[bytes]]:
    """The sessions, the ids of the messages, and what the device read."""
    sessions, ids, data = [], [], []
    with TraceReader(path) as reader:
        for one in reader:
            if isinstance(one, TracedSession):
                sessions.append(replace(one.info, recording="", file=0))
            elif isinstance(one, TracedMessage):
                ids.append(one.header.message_id)
                assert one.number == len(ids)
            elif isinstance(one, TracedEvents):
                data += [reader.data(event) for event in one.events if isinstance(event, Access)]
    return sessions, ids, data


WHOLE = [INFO], list(range(COUNT)), [page(number % 3) for number in range(COUNT)]
CONTINUED = replace(INFO, continued=True)


def test_a_session_in_several_files_is_one_session_of_one_trace(recorded: Path) -> None:
    assert read(recorded) == WHOLE


def test_what_came_before_a_file_in_the_middle_is_read_and_not_what_came_behind(recorded: Path) -> None:
    sessions, ids, _ = read(numbered(recorded, 1))
    assert sessions == [INFO]
    assert ids == list(range(len(ids)))
    assert len(read(numbered(recorded, 2))[1]) < len(ids) < COUNT


def test_files_that_were_joined_by_hand_are_one_session_too(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = tmp_path / "joined"
    joined.write_bytes(b"".join(path.read_bytes() for path in files_of(recorded)))
    monkeypatch.delattr(ContentIndex, "find")  # all contents are where they should be
    assert read(joined) == WHOLE
    assert read(recorded) == WHOLE


def test_files_that_were_joined_by_hand_without_one_in_between_are_two_sessions(
    recorded: Path, tmp_path: Path
) -> None:
    oldest, _, newest = files_of(recorded)
    joined = tmp_path / "joined"
    joined.write_bytes(oldest.read_bytes() + newest.read_bytes())
    assert read(joined)[0] == [INFO, CONTINUED]


def test_sections_that_moved_have_their_contents_where_they_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b""
    for number in range(2):
        ring = TraceRing(tmp_path / str(number))
        record(ring, 3)
        record(ring, 3)
        ring.close()
        data += (tmp_path / str(number)).read_bytes()
    (tmp_path / "both").write_bytes(data)
    monkeypatch.delattr(ContentIndex, "find")
    assert read(tmp_path / "both") == ([INFO] * 4, [0, 1, 2] * 4, [page(0), page(1), page(2)] * 4)


def test_a_ring_that_has_lost_its_beginning_goes_on_from_a_file_before(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    ring = TraceRing(file, MIN_LIMIT)
    record(ring, 200)
    ring.close()
    sessions, ids, _ = read(file)
    assert sessions == [CONTINUED]
    assert ids == list(range(200))[-len(ids) :]
    assert len(files_of(file)) == FILES


def test_of_a_ring_with_several_sessions_only_those_that_go_on_take_the_file_before_along(
    tmp_path: Path,
) -> None:
    file = tmp_path / "trace"
    ring = TraceRing(file, MIN_LIMIT)
    record(ring, 15)
    record(ring, 15)
    ring.close()
    assert len(files_of(file)) == 2
    assert read(file) == (
        [INFO, INFO],
        [*range(15), *range(15)],
        [page(number % 3) for number in range(15)] * 2,
    )


def test_a_session_that_begins_with_a_file_needs_none_before(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    ring = TraceRing(file, MIN_LIMIT)
    record(ring, 15)
    ring.rotate()  # as a session does that begins where the file before is full
    record(ring, 3)
    ring.close()
    assert read(file)[:2] == ([INFO], [0, 1, 2])


@pytest.mark.parametrize("missing", [1, 2])
def test_a_file_that_is_missing_is_not_read_over(recorded: Path, missing: int) -> None:
    numbered(recorded, missing).unlink()
    sessions, ids, _ = read(recorded)
    assert sessions == [CONTINUED]
    assert ids == list(range(COUNT))[-len(ids) :]


@pytest.mark.parametrize(
    "other", ["another recording", "the one after next", "itself", "a folder", "nothing", "text"]
)
def test_a_file_that_only_has_the_name_is_not_taken_for_the_one_before(
    recorded: Path, tmp_path: Path, other: str
) -> None:
    before, alone = numbered(recorded, 1), read(Path(shutil.copy(recorded, tmp_path / "alone")))
    before.rename(tmp_path / "before")
    if other == "another recording":
        ring = TraceRing(tmp_path / "other", MIN_LIMIT)
        record(ring)
        ring.close()
        numbered(tmp_path / "other", 1).rename(before)
    elif other == "the one after next":
        numbered(recorded, 2).rename(before)
    elif other == "itself":
        shutil.copy(recorded, before)
    elif other == "a folder":
        before.mkdir()
    else:
        before.write_bytes(b"" if other == "nothing" else b"text")
    assert read(recorded) == alone
    assert alone[0] == [CONTINUED]


def test_nothing_goes_on_from_a_file_that_was_cut_short(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = numbered(recorded, 1)
    os.truncate(before, before.stat().st_size - 6)
    assert read(recorded)[0] == [INFO, CONTINUED]
    assert main(["trace", "show", str(recorded)]) == 0
    assert capsys.readouterr().err.startswith(f"vgpud: {before}: cut short: ")


def test_damage_in_a_file_before_is_said_of_that_file(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = numbered(recorded, 2)
    data = bytearray(before.read_bytes())
    data[-1] ^= 0xFF
    before.write_bytes(data)
    assert main(["trace", "show", str(recorded)]) == 1
    assert capsys.readouterr().err.startswith(f"vgpud: {before}: damaged at byte ")


def test_a_replay_goes_through_all_files(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbered(recorded, 2).unlink()
    assert main(["trace", "replay", "--serve", "edu", str(recorded)]) == 1
    assert "in a file before" in capsys.readouterr().err
