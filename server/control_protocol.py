"""The control socket's messages: one JSON object per line, then raw pixels where a screenshot was asked for.

A request is ``{"command": NAME, ...}``; the answer is ``{"ok": true, ...}`` or ``{"ok": false, "error": TEXT}``. The
answer to ``screenshot`` names the sizes of the pixel blocks that follow its line, the scanout's and the cursor's.
"""

from __future__ import annotations

import json
from typing import Any

from devices.display import CursorImage, Frame, PixelBuffer, PixelLayout

MAX_LINE = 64 * 1024
"""Longest request or answer line in bytes."""
MAX_PIXELS = 1 << 30
"""Largest block of pixels, in bytes, that a client accepts."""
BYTES_PER_PIXEL = 4


class ControlError(Exception):
    """The control socket's other end refused, or sent nonsense; the text is one line."""


def encode_line(message: dict[str, Any]) -> bytes:
    """One message, with its line feed."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """One message. Raises ControlError for anything but a JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"not a line of JSON: {error}") from error
    if not isinstance(message, dict):
        raise ControlError("not a JSON object")
    return message


def _describe(buffer: PixelBuffer) -> dict[str, Any]:
    return {
        "width": buffer.width,
        "height": buffer.height,
        "stride": buffer.stride,
        "layout": buffer.layout.value,
        "bytes": len(buffer.pixels),
    }


def encode_frame(frame: Frame) -> tuple[dict[str, Any], list[bytes]]:
    """The answer line's fields for ``frame``, and the blocks that follow the line."""
    fields: dict[str, Any] = {"scanout": frame.scanout, "buffer": _describe(frame.buffer), "cursor": None}
    blocks = [frame.buffer.pixels]
    if frame.cursor is not None:
        cursor = frame.cursor
        fields["cursor"] = {"x": cursor.x, "y": cursor.y, "image": _describe(cursor.image)}
        blocks.append(cursor.image.pixels)
    return fields, blocks


def frame_block_sizes(answer: dict[str, Any]) -> list[int]:
    """How many bytes follow the answer line, block by block. Raises ControlError."""
    try:
        sizes = [int(answer["buffer"]["bytes"])]
        if answer["cursor"] is not None:
            sizes.append(int(answer["cursor"]["image"]["bytes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError(f"the screenshot's description is incomplete: {error!r}") from error
    if any(not 0 <= size <= MAX_PIXELS for size in sizes):
        raise ControlError(f"a screenshot of {max(sizes)} bytes is out of all proportion")
    return sizes


def decode_frame(answer: dict[str, Any], blocks: list[bytes]) -> Frame:
    """The inverse of :func:`encode_frame`. Raises ControlError."""
    try:
        cursor = answer["cursor"]
        return Frame(
            scanout=int(answer["scanout"]),
            buffer=_rebuild(answer["buffer"], blocks[0]),
            cursor=None
            if cursor is None
            else CursorImage(int(cursor["x"]), int(cursor["y"]), _rebuild(cursor["image"], blocks[1])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ControlError(f"the screenshot's description is wrong: {error!r}") from error


def _rebuild(description: dict[str, Any], pixels: bytes) -> PixelBuffer:
    width, height, stride = (int(description[name]) for name in ("width", "height", "stride"))
    if not (0 < width <= MAX_PIXELS and 0 < height <= MAX_PIXELS and stride >= width * BYTES_PER_PIXEL):
        raise ValueError(f"{width}x{height} pixels in rows of {stride} bytes")
    if len(pixels) < stride * (height - 1) + width * BYTES_PER_PIXEL:
        raise ValueError(f"{width}x{height} pixels in {len(pixels)} bytes")
    return PixelBuffer(width, height, stride, PixelLayout(description["layout"]), pixels)
