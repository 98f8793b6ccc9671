"""The QMP client, and what QEMU, or whatever is at that socket, may say to it."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from server.hotplug.errors import HotplugError
from server.hotplug.qmp import (
    GREETING_SECONDS,
    MAX_LINE,
    REPLY_SECONDS,
    CommandFailed,
    Event,
    Qmp,
    QmpError,
    connected,
)
from tests.server.hotplug.fake_qemu import (
    GREETING,
    HANG_UP,
    FakeQemu,
    Json,
    deleted,
    event,
    refuses,
    returns,
    running,
    talking_to,
)


def is_deletion(event: Event) -> bool:
    return event.name == "DEVICE_DELETED"


def saying(*messages: Json | bytes) -> FakeQemu:
    """A QEMU that says ``messages`` when it is asked for its status."""
    return FakeQemu(says={"query-status": lambda _: list(messages)})


async def test_a_command_returns_what_qemu_returns(tmp_path: Path) -> None:
    async with talking_to(FakeQemu(), tmp_path) as qmp:
        assert await qmp.execute("query-status") == {"status": "running", "running": True}
        assert qmp.release == "11.1.3"


async def test_arguments_are_passed_on(tmp_path: Path) -> None:
    qemu = FakeQemu()
    async with talking_to(qemu, tmp_path) as qmp:
        await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    assert qemu.executed == [("qmp_capabilities", None), ("qom-list", {"path": "/machine/peripheral"})]


async def test_an_event_that_comes_before_the_reply_is_seen(tmp_path: Path) -> None:
    qemu = saying(event("RESUME"), deleted("a"), deleted("b"), returns(5))
    async with talking_to(qemu, tmp_path) as qmp:
        with qmp.watching(is_deletion) as deletion:
            assert await qmp.execute("query-status") == 5
            assert (await qmp.until(deletion)).data["device"] == "a"


async def test_an_event_that_comes_after_the_reply_is_waited_for(tmp_path: Path) -> None:
    async with talking_to(saying(returns(5), event("RESUME"), deleted("a")), tmp_path) as qmp:
        with qmp.watching(is_deletion) as deletion:
            assert await qmp.execute("query-status") == 5
            assert deletion.event is None
            assert (await qmp.until(deletion)).name == "DEVICE_DELETED"


async def test_an_event_that_came_before_it_was_watched_does_not_count(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with talking_to(saying(deleted("a"), returns(5)), tmp_path) as qmp:
        await qmp.execute("query-status")
        with qmp.watching(is_deletion) as deletion, trio.move_on_after(1000) as scope:
            await qmp.until(deletion)
        assert scope.cancelled_caught


async def test_a_refused_command_is_an_exception_and_the_next_one_works(tmp_path: Path) -> None:
    async with talking_to(saying(refuses("no\x1b[31m\nway", "DeviceNotFound")), tmp_path) as qmp:
        with pytest.raises(CommandFailed) as failure:
            await qmp.execute("query-status")
        assert failure.value.error_class == "DeviceNotFound"
        assert failure.value.description == "no [31m way"
        assert await qmp.execute("qom-list-types", {"implements": "nothing"}) == []


async def test_a_reply_to_a_command_that_was_given_up_is_not_taken_for_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    answers: list[list[Json | bytes]] = [[], [{"return": "late", "id": 2}, returns("mine")]]
    qemu = FakeQemu(says={"query-status": lambda _: answers.pop(0)})
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.move_on_after(1):
            await qmp.execute("query-status")
        assert await qmp.execute("query-status") == "mine"


async def test_a_command_that_was_given_up_before_it_was_sent_leaves_the_connection_as_it_was(
    tmp_path: Path,
) -> None:
    qemu = FakeQemu()
    async with talking_to(qemu, tmp_path) as qmp:
        with trio.CancelScope() as scope:
            scope.cancel()
            await qmp.execute("qom-list-types", {"implements": "nothing"})
        assert scope.cancelled_caught
        assert await qmp.execute("query-status") == {"status": "running", "running": True}
    assert qemu.commands() == ["qmp_capabilities", "query-status"]


async def test_hanging_up_is_no_moment_at_which_work_that_is_done_is_given_up(tmp_path: Path) -> None:
    async with running(FakeQemu(), tmp_path) as path:
        with trio.CancelScope() as scope:
            async with connected(path):
                scope.cancel()
        assert not scope.cancelled_caught


async def test_a_message_may_come_in_any_pieces(tmp_path: Path) -> None:
    text = json.dumps({"return": ["ü" * 1000], "id": 2}, ensure_ascii=False).encode() + b"\n"
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    async with talking_to(saying(*pieces), tmp_path) as qmp:
        assert await qmp.execute("query-status") == ["ü" * 1000]


async def test_a_message_may_be_long_but_not_without_end(tmp_path: Path) -> None:
    async with talking_to(saying(returns("x" * (MAX_LINE - 100))), tmp_path) as qmp:
        assert len(await qmp.execute("query-status")) == MAX_LINE - 100
    endless = [b"x" * (1 << 20)] * 8
    async with talking_to(saying(*endless), tmp_path) as qmp:
        with pytest.raises(QmpError, match="more than 4 MiB"):
            await qmp.execute("query-status")
        with pytest.raises(QmpError, match="more than 4 MiB"):
            await qmp.execute("query-status")


@pytest.mark.parametrize(
    "garbage",
    [
        b"QEMU 11.1.3 monitor - type 'help' for more information\r\n(qemu) \n",
        b"[]\n",
        b"5\n",
        b"\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"return": ' + b"9" * 5000 + b', "id": 2}\n',
        b'{"return": {}, "id": 2\n',
    ],
    ids=["monitor", "array", "number", "empty", "no UTF-8", "nested", "long number", "cut off"],
)
async def test_what_is_no_qmp_is_said_to_be_none(tmp_path: Path, garbage: bytes) -> None:
    async with talking_to(saying(garbage), tmp_path) as qmp:
        with pytest.raises(QmpError, match="no QMP socket: give the PATH of QEMU's option -qmp"):
            await qmp.execute("query-status")
    with pytest.raises(QmpError, match="no QMP socket: give the PATH of QEMU's option -qmp"):
        async with talking_to(FakeQemu(greeting=garbage), tmp_path):
            pass


@pytest.mark.parametrize(
    "greeting",
    [
        {"return": {}},
        {"QMP": 5},
        {"QMP": {"version": {"qemu": 11}}},
        {"QMP": {"version": {"qemu": {"major": "11", "minor": 1, "micro": 0}}}},
    ],
)
async def test_a_greeting_is_one_of_qemu(tmp_path: Path, greeting: Json) -> None:
    with pytest.raises(QmpError, match="no QMP socket"):
        async with talking_to(FakeQemu(greeting=greeting), tmp_path):
            pass


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"return": 1}], "id is no number"),
        ([{"return": 1, "id": 3}], "id is no number below 3"),
        ([{"return": 1, "id": True}], "id is no number"),
        ([{"id": 2}], "error is no object"),
        ([{"id": 2, "error": {"class": "GenericError"}}], "desc is no string"),
        (
            [{"error": {"class": "GenericError", "desc": "JSON parse error"}}],
            "could not read a command: JSON parse",
        ),
        ([{"event": 5}], "event is no string"),
        ([{"event": "RESUME", "data": []}], "data is no object"),
    ],
)
async def test_a_message_that_makes_no_sense_is_refused(
    tmp_path: Path, messages: list[Any], says: str
) -> None:
    async with talking_to(saying(*messages), tmp_path) as qmp:
        with pytest.raises(HotplugError, match=says):
            await qmp.execute("query-status")


async def test_the_end_of_qemu_is_noticed_wherever_it_comes(tmp_path: Path) -> None:
    for messages in ([HANG_UP], [b'{"return"', HANG_UP]):
        async with talking_to(saying(*messages), tmp_path) as qmp:
            with pytest.raises(QmpError, match="QEMU hung up: has it ended"):
                await qmp.execute("query-status")
            with pytest.raises(QmpError, match="QEMU hung up: has it ended"):
                await qmp.execute("query-status")
    async with talking_to(saying(returns(5), HANG_UP), tmp_path) as qmp:
        with qmp.watching(is_deletion) as deletion:
            await qmp.execute("query-status")
            with pytest.raises(QmpError, match="QEMU hung up: has it ended"):
                await qmp.until(deletion)


async def test_a_qemu_that_talks_to_somebody_else_is_not_waited_for_without_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running(FakeQemu(), tmp_path) as path, connected(path):
        with pytest.raises(QmpError, match="one client at a time"):
            async with connected(path):
                pass
    assert trio.current_time() == pytest.approx(GREETING_SECONDS)


async def test_a_qemu_that_hangs_is_not_waited_for_without_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with talking_to(saying(), tmp_path) as qmp:
        with pytest.raises(QmpError, match="did not answer query-status in 30 s"):
            await qmp.execute("query-status")
    assert trio.current_time() == pytest.approx(REPLY_SECONDS)


async def test_where_nobody_listens_the_option_of_qemu_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / ("x" * 200), tmp_path):
        with pytest.raises(QmpError, match=f"start it with -qmp unix:{path},server=on,wait=off"):
            async with connected(path):
                pass


MESSAGES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["event", "data", "return", "error", "id", "class", "desc"]), inner
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode() + b"\n"),
)


@settings(max_examples=300)
@given(st.lists(MESSAGES, max_size=4))
def test_whatever_comes_is_an_answer_or_an_error_for_the_user(messages: list[bytes]) -> None:
    async def converse() -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        with theirs:
            theirs.send(json.dumps(GREETING).encode() + b'\n{"return": {}, "id": 1}\n' + b"".join(messages))
            theirs.shutdown(socket.SHUT_WR)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                qmp = Qmp(stream, Path("qmp"))
                await qmp.negotiate()
                with suppress(HotplugError):
                    await qmp.execute("query-status")

    trio.run(converse)
