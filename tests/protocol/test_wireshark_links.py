"""The dissector for Wireshark links requests and replies: by message ID, and by who asks whom."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest

from protocol import (
    Command,
    DmaRead,
    DmaReadReply,
    RegionRead,
    RegionReadReply,
    Version,
    encode_error,
    encode_reply,
    encode_request,
)
from protocol.codec import PackableRequest
from protocol.pcapng import Direction
from protocol.trace import SessionInfo
from tests.protocol.tshark import Capture, Row, rows, tshark

CLIENT, SERVER = Direction.INBOUND, Direction.OUTBOUND
OTHER = {CLIENT: SERVER, SERVER: CLIENT}
REQUEST: dict[Direction, PackableRequest] = {CLIENT: RegionRead(0, 0, 4), SERVER: DmaRead(0, 4)}
REPLY: dict[Direction, PackableRequest] = {
    CLIENT: RegionReadReply(0, 0, bytes(4)),
    SERVER: DmaReadReply(0, bytes(4)),
}


class Conversation:
    """A capture of requests and replies, and which belong together, as whoever answers knows."""

    def __init__(self, *, directions: bool = True) -> None:
        self.capture = Capture()
        self.directions = directions
        self.replies: dict[int, int] = {}
        """The frames of replies, by those of their requests."""
        self.times: dict[int, int] = {}

    def send(self, message: bytes, direction: Direction) -> int:
        after = 1 + self.capture.frames * 7919
        frame = self.capture.message(
            message, direction if self.directions else Direction.UNKNOWN, after=after
        )
        self.times[frame] = self.capture.time
        return frame

    def ask(self, side: Direction, message_id: int, *, no_reply: bool = False) -> int:
        return self.send(encode_request(message_id, REQUEST[side], no_reply=no_reply), side)

    def answer(
        self, side: Direction, message_id: int, frame: int | None = None, *, fail: bool = False
    ) -> int:
        """``side`` asked in ``frame``."""
        reply = REPLY[side]
        message = encode_reply(message_id, reply.command, reply)
        if fail:
            message = encode_error(message_id, reply.command, 22)
        answer = self.send(message, OTHER[side])
        if frame is not None:
            self.replies[frame] = answer
        return answer

    def version(self) -> None:
        request = self.send(encode_request(0, Version(0, 1)), CLIENT)
        self.replies[request] = self.send(encode_reply(0, Command.VERSION, Version(0, 1)), SERVER)

    def section(self) -> None:
        """Begin as recorders do."""
        self.capture.section()
        self.capture.record(SessionInfo("tests", continued=True).pack())

    def shown(self, folder: Path) -> list[Row]:
        return rows(self.capture.write(folder / "file.pcapng"), "-2")

    def check(self, folder: Path) -> None:
        requests = {reply: request for request, reply in self.replies.items()}
        for frame, row in enumerate(self.shown(folder), start=1):
            reply, request = self.replies.get(frame), requests.get(frame)
            assert row["vfio_user.response_in"] == ([] if reply is None else [reply]), frame
            assert row["vfio_user.response_to"] == ([] if request is None else [request]), frame
            taken = [] if request is None else [Decimal(self.times[frame] - self.times[request]) / 10**9]
            assert list(map(Decimal, map(str, row["vfio_user.time"]))) == taken, frame


@pytest.mark.parametrize("directions", [True, False])
def test_replies_are_linked_to_their_requests(directions: bool, tmp_path: Path) -> None:
    talk = Conversation(directions=directions)
    random = Random(1)  # noqa: S311
    waiting: dict[tuple[Direction, int], int] = {}
    talk.version()
    for _ in range(2000):
        side, message_id = random.choice([CLIENT, SERVER]), random.randrange(6)
        if random.random() < 0.01:
            random.choice([talk.version, talk.section])()
            waiting.clear()
        elif random.random() < 0.5 and waiting:
            side, message_id = random.choice(list(waiting))
            talk.answer(side, message_id, waiting.pop((side, message_id)), fail=random.random() < 0.2)
        elif random.random() < 0.1:
            # An answer to nothing, or to something that another answer came for.
            if (side, message_id) not in waiting:
                talk.answer(side, message_id)
        else:
            no_reply = random.random() < 0.2
            frame = talk.ask(side, message_id, no_reply=no_reply)
            waiting.pop((side, message_id), None)
            if not no_reply:
                waiting[side, message_id] = frame
    assert len(talk.replies) > 500
    talk.check(tmp_path)


def test_both_sides_use_the_same_ids_independently(tmp_path: Path) -> None:
    talk = Conversation()
    outer = talk.ask(CLIENT, 7)
    inner = talk.ask(SERVER, 7)
    talk.answer(SERVER, 7, inner)
    talk.answer(CLIENT, 7, outer)
    talk.check(tmp_path)


def test_a_reply_goes_to_the_last_request_of_its_id(tmp_path: Path) -> None:
    talk = Conversation()
    talk.ask(CLIENT, 7)
    last = talk.ask(CLIENT, 7)
    talk.answer(CLIENT, 7, last)
    talk.answer(CLIENT, 7)
    talk.check(tmp_path)


RESTARTS: dict[str, Callable[[Conversation], object]] = {
    "version": Conversation.version,
    "section": Conversation.section,
}


@pytest.mark.parametrize("restart", RESTARTS.values(), ids=RESTARTS)
def test_nothing_is_linked_to_what_was_before(
    restart: Callable[[Conversation], object], tmp_path: Path
) -> None:
    talk = Conversation()
    talk.ask(CLIENT, 7)
    talk.ask(SERVER, 7)
    restart(talk)
    talk.answer(CLIENT, 7)
    talk.answer(SERVER, 7)
    talk.check(tmp_path)


def test_a_clock_that_was_set_back_does_no_harm(tmp_path: Path) -> None:
    talk = Conversation()
    frame = talk.ask(CLIENT, 7)
    talk.capture.time -= 3_500_000_000
    talk.answer(CLIENT, 7, frame)
    talk.check(tmp_path)


def test_a_malformed_message_is_linked_as_well(tmp_path: Path) -> None:
    talk = Conversation()
    frame = talk.send(encode_request(7, REQUEST[CLIENT])[:-1], CLIENT)
    talk.answer(CLIENT, 7, frame, fail=True)
    talk.check(tmp_path)


def test_the_columns_say_who_sends_to_whom(tmp_path: Path) -> None:
    for directions in (True, False):
        talk = Conversation(directions=directions)
        talk.answer(CLIENT, 7, talk.ask(CLIENT, 7))
        talk.answer(SERVER, 7, talk.ask(SERVER, 7))
        talk.capture.write(tmp_path / "file.pcapng")
        shown = tshark(tmp_path / "file.pcapng", "-T", "fields", "-e", "_ws.col.Source")
        assert shown.split() == ["client", "server", "server", "client"]
