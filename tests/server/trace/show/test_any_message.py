"""Whatever a message holds, it can be shown, counted and compared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol import HEADER_SIZE, Command, Header
from protocol.codec import Packable, PackableRequest
from protocol.pcapng import Direction
from server.trace.diff.meaning import differences, meaning_of
from server.trace.fd_facts import MessageFacts
from server.trace.pairing import DecodedMessage, decode
from server.trace.reader import TracedMessage
from server.trace.show.statistics import Statistics, report
from server.trace.text.as_json import message_object
from server.trace.text.lines import message_line
from server.trace.text.names import Names
from tests.protocol import strategies
from tests.server.trace.show_files import START


def _traced(command: int, flags: int, payload: bytes, error: int = 0) -> TracedMessage:
    header = Header(1, command, HEADER_SIZE + len(payload), flags, error)
    return TracedMessage(1, START, Direction.INBOUND, header, memoryview(payload), MessageFacts())


def _check(message: DecodedMessage) -> None:
    """Everything that is done with messages can be done with this one."""
    names = Names("virtio-gpu")
    line = message_line(message, names, START)
    assert line.isascii()
    assert line.isprintable()
    assert message_object(message, 1, names, START)["number"] == 1
    assert meaning_of(message).same(meaning_of(message))
    assert list(differences(message, message)) == []
    statistics = Statistics()
    statistics.add(message)
    assert list(report(statistics, 0))


@given(strategies.requests)
def test_every_request_can_be_shown(request: PackableRequest) -> None:
    message = decode(_traced(request.command, 0, request.pack()))

    assert message.value == request
    assert message.reason == ""
    _check(message)


@given(strategies.replies())
def test_every_reply_can_be_shown(answer: tuple[Command, Packable]) -> None:
    command, reply = answer

    message = decode(_traced(command, 1, reply.pack()))

    assert message.value is not None
    _check(message)


@given(
    st.sampled_from(Command) | strategies.u16,
    strategies.u32 | st.just(0x21),
    st.binary(max_size=80),
    strategies.u32,
)
def test_whatever_a_message_holds_can_be_shown(command: int, flags: int, payload: bytes, error: int) -> None:
    message = decode(_traced(command, flags, payload, error))

    assert (message.value is None) == (message.reason != "")
    _check(message)


@given(strategies.requests, strategies.requests)
def test_any_two_requests_can_be_compared(one: PackableRequest, other: PackableRequest) -> None:
    a, b = (decode(_traced(value.command, 0, value.pack())) for value in (one, other))

    if meaning_of(a).same(meaning_of(b)):
        assert one == other
    elif meaning_of(a).shape == meaning_of(b).shape:
        assert list(differences(a, b))
