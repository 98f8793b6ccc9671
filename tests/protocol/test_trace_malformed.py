"""What is no message, in a record of a trace: what is written is read, and what is wrong is refused."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.trace import MAX_MALFORMED, Malformed, RecordKind, TraceError, unpack


def rest_of(payload: bytes) -> Malformed:
    kind, rest = unpack(payload)
    assert kind is RecordKind.MALFORMED
    return Malformed.unpack(rest)


@given(st.text(max_size=100), st.binary(max_size=100))
@example("", b"")
@example("a reason", bytes(range(256)) * (MAX_MALFORMED // 256))
def test_what_is_no_message_is_read_as_it_was_written(reason: str, data: bytes) -> None:
    payload = Malformed(reason, data).pack()
    assert payload == b"\x04\0\0\0" + pack("<H", len(reason.encode())) + reason.encode() + data
    assert rest_of(payload) == Malformed(reason, data)


def test_of_what_is_no_message_a_bounded_part_is_kept() -> None:
    payload = Malformed("r" * 2**17, bytes(2**20)).pack()
    kept = rest_of(payload)
    assert (len(kept.reason), len(kept.data)) == (2**16 - 1, MAX_MALFORMED)


@pytest.mark.parametrize("payload", [b"", b"\0", b"\2\0r", pack("<H", 1) + bytes(MAX_MALFORMED + 2)])
def test_what_is_no_message_is_refused_where_it_is_not_what_it_says(payload: bytes) -> None:
    with pytest.raises(TraceError, match="malformed message"):
        Malformed.unpack(payload)


def test_a_reason_in_no_known_encoding_is_read_all_the_same() -> None:
    assert Malformed.unpack(b"\2\0\xff!data") == Malformed("\ufffd!", b"data")
