from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_one_way_pair

from server.guest.errors import GuestError
from server.guest.lines import TAIL, LineLog


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))), st.data())
def test_lines_come_out_whole_however_they_arrive(lines: list[str], data: st.DataObject) -> None:
    sent = "".join(f"{line}\r\n" for line in lines).encode()
    log = LineLog("log")
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        log.feed(sent[:size])
        sent = sent[size:]
    assert log.lines == lines


def test_the_tail_is_short_and_has_the_unfinished_line() -> None:
    log = LineLog("log")
    log.feed(b"".join(b"%d\n" % number for number in range(100)) + b"unfinished")
    assert len(log.tail) == TAIL
    assert log.tail[-2:] == ("99", "unfinished")
    assert log.last_words == "unfinished"


async def test_a_line_is_waited_for() -> None:
    log = LineLog("log")
    sender, receiver = memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.read_from, receiver)
        await sender.send_all(b"one\ntwo\n")
        assert await log.wait_for("tw") == (1, "two")
        assert await log.wait_for("o", since=1) == (1, "two")
        nursery.start_soon(sender.send_all, b"three\n")
        assert await log.wait_for(lambda line: line.startswith("th")) == (2, "three")
        await sender.aclose()


async def test_waiting_ends_with_the_stream_and_gives_the_last_line() -> None:
    log = LineLog("the console")
    sender, receiver = memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.read_from, receiver)
        await sender.send_all(b"Kernel panic\n")
        await sender.aclose()
        with pytest.raises(GuestError, match="the console ended: Kernel panic") as caught:
            await log.wait_for("login:")
    assert caught.value.log == ("Kernel panic",)


async def test_waiting_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    log = LineLog("the console")
    with pytest.raises(GuestError, match=r"the console: no 'login:' within 30 s; .* nothing was printed"):
        await log.wait_for("login:", within=30)
