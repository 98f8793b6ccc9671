"""Every message, there and back again; and nothing but ProtocolError for what is none."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import (
    FLAG_ERROR,
    HEADER_SIZE,
    REPLIES,
    REQUESTS,
    Acknowledgement,
    Command,
    DeviceReset,
    ErrorReply,
    GetInfo,
    Header,
    MessageType,
    ProtocolError,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from tests.protocol import strategies
from tests.protocol.layout import attempt, header


def split(message: bytes) -> tuple[Header, memoryview]:
    return Header.unpack(message), memoryview(message)[HEADER_SIZE:]


@given(strategies.requests, strategies.u16, st.booleans())
def test_a_request_survives_the_wire(request: Request, message_id: int, no_reply: bool) -> None:
    message = encode_request(message_id, request, no_reply=no_reply)
    head, payload = split(message)
    assert (head.message_id, head.command, head.size) == (message_id, request.command, len(message))
    assert head.no_reply is no_reply
    assert decode_request(head, payload) == request


@given(strategies.replies(), strategies.u16)
def test_a_reply_survives_the_wire(reply: tuple[Command, Reply], message_id: int) -> None:
    command, value = reply
    message = encode_reply(message_id, command, value)
    head, payload = split(message)
    assert (head.message_id, head.command, head.size) == (message_id, command, len(message))
    assert head.is_reply
    assert not head.is_error
    assert decode_reply(head, payload) == value


@given(strategies.u16, strategies.commands, strategies.u32)
def test_an_error_reply_survives_the_wire(message_id: int, command: Command, code: int) -> None:
    message = encode_error(message_id, command, code)
    assert len(message) == HEADER_SIZE
    assert decode_reply(*split(message)) == ErrorReply(code)


def _mutations(valid: bytes) -> st.SearchStrategy[bytes]:
    cut = st.integers(0, len(valid)).map(lambda end: valid[:end])
    grown = st.binary(min_size=1, max_size=40).map(lambda more: valid + more)
    patched = st.tuples(st.integers(0, max(len(valid) - 1, 0)), st.binary(min_size=1, max_size=8)).map(
        lambda patch: valid[: patch[0]] + patch[1] + valid[patch[0] + len(patch[1]) :]
    )
    return cut | grown | patched


def _close_calls(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that are nothing, and bytes that were a message before somebody changed them."""
    return st.binary(max_size=200) | valid.flatmap(_mutations)


@pytest.mark.parametrize("command", Command)
@given(st.data())
def test_a_malformed_request_raises_only_protocol_errors(command: Command, draw: st.DataObject) -> None:
    payload = draw.draw(_close_calls(strategies.REQUESTS[command].map(lambda value: value.pack())))
    match attempt(REQUESTS[command].unpack, payload):
        case ProtocolError() as refusal:
            assert refusal.errno in errno.errorcode
            assert str(refusal)
        case value:
            assert type(value) is REQUESTS[command]


@pytest.mark.parametrize("command", Command)
@given(st.data())
def test_a_malformed_reply_raises_only_protocol_errors(command: Command, draw: st.DataObject) -> None:
    payload = draw.draw(_close_calls(strategies.REPLIES[command].map(lambda value: value.pack())))
    match attempt(REPLIES[command].unpack, payload):
        case ProtocolError() as refusal:
            assert refusal.errno in errno.errorcode
            assert str(refusal)
        case value:
            assert type(value) is REPLIES[command]


@pytest.mark.parametrize("command", [0, 14, 19, 0xFFFF])
def test_an_unknown_command_is_enosys(command: int) -> None:
    with pytest.raises(ProtocolError) as request:
        decode_request(Header(1, command), b"")
    with pytest.raises(ProtocolError) as reply:
        decode_reply(Header(1, command, flags=MessageType.REPLY), b"")
    assert request.value.errno == reply.value.errno == errno.ENOSYS


@pytest.mark.parametrize("flags", [1, 2, 15])
def test_what_is_not_a_command_is_no_request(flags: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(Header(1, Command.DEVICE_RESET, flags=flags), b"")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("flags", [0, 2, 15, FLAG_ERROR])
def test_what_is_not_a_reply_is_no_reply(flags: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(Header(1, Command.DEVICE_RESET, flags=flags), b"")
    assert caught.value.errno == errno.EINVAL


def test_an_error_reply_has_no_payload() -> None:
    head = Header(1, Command.DEVICE_RESET, flags=MessageType.REPLY | FLAG_ERROR, error=errno.EIO)
    with pytest.raises(ProtocolError):
        decode_reply(head, b"\0")


def test_a_payload_where_none_belongs_is_refused() -> None:
    with pytest.raises(ProtocolError):
        DeviceReset.unpack(b"\0")
    with pytest.raises(ProtocolError):
        Acknowledgement.unpack(b"\0")


def test_messages_have_the_header_of_the_specification() -> None:
    assert encode_request(0x1234, GetInfo())[:16] == header(0x1234, 4, 32, flags=0)
    assert encode_request(7, DeviceReset(), no_reply=True) == header(7, 13, 16, flags=1 << 4)
    assert encode_reply(7, Command.DEVICE_RESET) == header(7, 13, 16, flags=1)
    assert encode_error(7, Command.DMA_MAP, errno.EEXIST) == header(7, 2, 16, flags=1 | 1 << 5, error=17)


def test_a_short_header_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Header.unpack(bytes(15))


def test_every_command_of_the_specification_has_its_number() -> None:
    assert {command.value: command.name for command in Command} == {
        1: "VERSION",
        2: "DMA_MAP",
        3: "DMA_UNMAP",
        4: "DEVICE_GET_INFO",
        5: "DEVICE_GET_REGION_INFO",
        6: "DEVICE_GET_REGION_IO_FDS",
        7: "DEVICE_GET_IRQ_INFO",
        8: "DEVICE_SET_IRQS",
        9: "REGION_READ",
        10: "REGION_WRITE",
        11: "DMA_READ",
        12: "DMA_WRITE",
        13: "DEVICE_RESET",
        15: "REGION_WRITE_MULTI",
        16: "DEVICE_FEATURE",
        17: "MIG_DATA_READ",
        18: "MIG_DATA_WRITE",
    }
    assert set(REQUESTS) == set(REPLIES) == set(Command)
