"""In what order ``vgpud trace diff`` compares: each reply behind its request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import Command, RegionRead, RegionReadReply
from protocol.trace import TraceError
from server.trace.diff import exchanges
from server.trace.diff.exchanges import in_exchanges
from server.trace.pairing import DecodedMessage, Unanswered, Walked, walk
from server.trace.reader import TraceReader
from tests.server.trace.diff.test_diff import diff
from tests.server.trace.show_files import TraceFile


def trace_of(order: str) -> TraceFile:
    """Letters are requests, capital letters their replies."""
    trace = TraceFile()
    for at, letter in enumerate(order):
        number = ord(letter.lower())
        if letter.islower():
            trace.request(number, RegionRead(number, 4, 1), at)
        else:
            reply = RegionReadReply(number, 4, bytes([number]))
            trace.reply(number, Command.REGION_READ, reply, at)
    return trace


def order_of(order: str, folder: Path) -> str:
    """The letters as they are compared."""
    letters = ""
    with TraceReader(trace_of(order).save(folder / "trace")) as reader:
        for item in in_exchanges(walk(reader)):
            if isinstance(item, DecodedMessage):
                letter = chr(item.message.header.message_id)
                letters += letter.upper() if item.is_reply else letter
    return letters


@pytest.mark.parametrize(
    ("recorded", "compared"),
    [
        ("aAbB", "aAbB"),
        ("abAB", "aAbB"),
        ("abBA", "aAbB"),
        ("abcCAB", "aAbBcC"),
        ("abB", "abB"),  # a has no reply
        ("aAB", "aAB"),  # B has no request
        ("aaAA", "aAaA"),  # ids may be used twice at a time
        ("", ""),
    ],
)
def test_a_reply_is_behind_its_request(recorded: str, compared: str, tmp_path: Path) -> None:
    assert order_of(recorded, tmp_path) == compared


def test_a_reply_that_is_far_away_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_AHEAD", 4)

    assert order_of("abBcCdDeEA", tmp_path) == "abBcCdDeEA"
    assert order_of("abBcCA", tmp_path) == "aAbBcC"


def test_long_messages_are_held_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_BYTES", 40)  # a read has 16 of them

    assert order_of("abAB", tmp_path) == "aAbB"
    assert order_of("abcABC", tmp_path) == "abcABC"


def test_replies_in_another_order_are_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = trace_of("abcdABCD" * 5), trace_of("abDcdCBA".replace("abDcd", "abcdD") * 5)

    assert diff(a, b, tmp_path, capsys) == (0, ["40 messages equal, 0 differ, 0 only in A, 0 only in B"])


def test_what_comes_before_damage_is_compared_before_it(tmp_path: Path) -> None:
    with TraceReader(trace_of("abc").save(tmp_path / "trace")) as reader:
        requests = list(walk(reader))[1:4]

    def walked() -> Iterator[Walked]:
        yield from requests
        raise TraceError("damage")

    compared = in_exchanges(walked())

    assert [next(compared) for _ in requests] == requests
    with pytest.raises(TraceError, match="damage"):
        next(compared)


@given(st.lists(st.sampled_from("abcABC"), max_size=60))
def test_nothing_is_lost_or_doubled(order: list[str]) -> None:
    with (
        TemporaryDirectory() as folder,
        TraceReader(trace_of("".join(order)).save(Path(folder, "t"))) as reader,
    ):
        items = list(walk(reader))
    held = [item for item in items if not isinstance(item, Unanswered)]

    compared = list(in_exchanges(items))

    assert sorted(map(id, compared)) == sorted(map(id, held))
