"""The control socket's messages: what is encoded is decoded, and nothing else raises anything but ControlError."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.display import CursorImage, Frame, PixelBuffer, PixelLayout
from server.control_protocol import (
    ControlError,
    decode_frame,
    decode_line,
    encode_frame,
    encode_line,
    frame_block_sizes,
)


@st.composite
def buffers(draw: st.DrawFn) -> PixelBuffer:
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    stride = width * 4 + draw(st.integers(0, 8))
    return PixelBuffer(
        width,
        height,
        stride,
        draw(st.sampled_from(PixelLayout)),
        draw(st.randoms()).randbytes(stride * height),
    )


positions = st.integers(-(2**31), 2**31)
frames = st.builds(
    Frame, st.integers(0, 15), buffers(), st.none() | st.builds(CursorImage, positions, positions, buffers())
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    fields, blocks = encode_frame(frame)
    answer = decode_line(encode_line({"ok": True, **fields}))
    assert frame_block_sizes(answer) == [len(block) for block in blocks]
    assert decode_frame(answer, blocks) == frame


@given(
    frames,
    st.lists(st.sampled_from(["buffer", "cursor", "scanout", "width", "bytes", "layout", "x"])),
    values,
)
def test_a_description_that_is_wrong_is_a_control_error_or_a_frame(
    frame: Frame, path: list[str], wrong: object
) -> None:
    fields, blocks = encode_frame(frame)
    target = fields
    for name in path:
        if isinstance(target.get(name), dict):
            target = target[name]
        else:
            target[name] = wrong
    with suppress(ControlError):
        frame_block_sizes(fields)
    with suppress(ControlError):
        decode_frame(fields, blocks)


@given(st.binary(max_size=64) | values.map(lambda value: json.dumps(value).encode()))
def test_a_line_is_an_object_or_a_control_error(line: bytes) -> None:
    with suppress(ControlError):
        assert isinstance(decode_line(line), dict)


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    line = encode_line({"text": "first\nsecond\u2028third", "number": 1})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_line(line) == {"text": "first\nsecond\u2028third", "number": 1}


@pytest.mark.parametrize("line", [b"[" * 100_000, b"1" * 100_000, b'{"a":' * 50_000, b"\x00", b"{}{}"])
def test_a_line_that_is_hard_to_read_is_a_control_error(line: bytes) -> None:
    with pytest.raises(ControlError):
        decode_line(line)
