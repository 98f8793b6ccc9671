"""The fast path writes the same bytes as the values do."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import (
    HEADER,
    HEADER_SIZE,
    REGION_ACCESS,
    REGION_REPLY_SIZE,
    Command,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteReply,
    encode_error,
    encode_reply,
    encode_request,
    pack_error_into,
    pack_read_reply_into,
    pack_reply_header_into,
    pack_write_reply_into,
)
from tests.protocol import strategies

BUFFER_SIZE = 256


@given(strategies.u16, strategies.u64, strategies.u32, st.binary(max_size=100))
def test_a_read_reply_is_the_same(message_id: int, offset: int, region: int, data: bytes) -> None:
    buffer = bytearray(BUFFER_SIZE)
    size = pack_read_reply_into(buffer, message_id, offset, region, data)
    expected = encode_reply(message_id, Command.REGION_READ, RegionReadReply(offset, region, data))
    assert buffer[:size] == expected
    assert len(buffer) == BUFFER_SIZE


@given(strategies.u16, strategies.u64, strategies.u32, strategies.u32)
def test_a_write_reply_is_the_same(message_id: int, offset: int, region: int, count: int) -> None:
    buffer = bytearray(BUFFER_SIZE)
    size = pack_write_reply_into(memoryview(buffer), message_id, offset, region, count)
    expected = encode_reply(message_id, Command.REGION_WRITE, RegionWriteReply(offset, region, count))
    assert buffer[:size] == expected


def test_an_error_reply_is_the_same() -> None:
    buffer = bytearray(BUFFER_SIZE)
    size = pack_error_into(buffer, 7, Command.REGION_READ, errno.EINVAL)
    assert buffer[:size] == encode_error(7, Command.REGION_READ, errno.EINVAL)


def test_a_reply_header_is_the_same() -> None:
    buffer = bytearray(BUFFER_SIZE)
    size = pack_reply_header_into(buffer, 7, Command.DEVICE_RESET, HEADER_SIZE)
    assert buffer[:size] == encode_reply(7, Command.DEVICE_RESET)


def test_a_request_is_read_without_a_value() -> None:
    message = encode_request(7, RegionWrite(0x14, 4, b"abcd"))
    assert HEADER.unpack_from(message) == (7, Command.REGION_WRITE, len(message), 0, 0)
    assert REGION_ACCESS.unpack_from(message, HEADER_SIZE) == (0x14, 4, 4)
    assert message[REGION_REPLY_SIZE:] == b"abcd"
    assert len(encode_request(7, RegionRead(0x14, 4, 4))) == REGION_REPLY_SIZE


def test_a_write_over_eight_bytes_does_not_fit_into_several() -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        RegionWriteMulti((RegionWrite(0, 0, bytes(9)),)).pack()
