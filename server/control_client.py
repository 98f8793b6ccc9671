"""The other end of the control socket: what ``vgpud status``, ``vgpud screenshot`` and ``vgpud display`` use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import trio

from devices.display import Frame, ScanoutInfo
from server.control_protocol import (
    MAX_LINE,
    ControlError,
    decode_frame,
    decode_line,
    encode_line,
    frame_block_sizes,
)
from server.display.protocol import DisplayChange, decode_scanouts

TIMEOUT_SECONDS = 10
"""How long a server may take to answer."""


async def status(control: Path) -> dict[str, Any]:
    """The status of the server at ``control``. Raises ControlError, one line that says what to do."""
    answer, _ = await _ask(control, {"command": "status"})
    result = answer.get("status")
    if not isinstance(result, dict):
        raise ControlError(f"{control}: the answer has no status")
    return result


async def capture(control: Path, scanout: int = 0) -> Frame:
    """What is on a scanout of the server at ``control``. Raises ControlError."""
    answer, blocks = await _ask(control, {"command": "screenshot", "scanout": scanout})
    return decode_frame(answer, blocks)


async def screenshot(control: Path, output: Path, scanout: int = 0) -> Frame:
    """Save a scanout, cursor included, as ``output`` (PNG); returns what was saved. Raises ControlError."""
    from server.screenshot import save_png  # noqa: PLC0415 - the imaging library is for those who need it

    frame = await capture(control, scanout)
    try:
        save_png(frame, output)
    except OSError as error:
        raise ControlError(f"{output}: cannot be written: {error.strerror or error}") from error
    return frame


async def display(control: Path, change: DisplayChange | None = None) -> list[ScanoutInfo]:
    """The screens of the server at ``control``, after ``change`` where there is one. Raises ControlError."""
    fields = {} if change is None else change.encode()
    answer, _ = await _ask(control, {"command": "display", **fields})
    return decode_scanouts(answer)


async def _ask(control: Path, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    try:
        with trio.fail_after(TIMEOUT_SECONDS):
            return await _converse(control, request)
    except trio.TooSlowError as error:
        raise ControlError(f"{control}: the server did not answer in {TIMEOUT_SECONDS} s") from error
    except OSError as error:
        reason = error.strerror or error
        raise ControlError(
            f"{control}: no server answers there ({reason}); start one with --control {control}"
        ) from error
    except trio.BrokenResourceError as error:
        raise ControlError(f"{control}: the server hung up") from error


async def _converse(control: Path, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    async with await trio.open_unix_socket(os.fspath(control)) as stream:
        await stream.send_all(encode_line(request))
        received = bytearray()
        while (end := received.find(b"\n")) < 0:
            if len(received) > MAX_LINE:
                raise ControlError(f"{control}: the answer is too long")
            received += await _some(stream, control)
        answer = decode_line(bytes(received[:end]))
        del received[: end + 1]
        if answer.get("ok") is not True:
            raise ControlError(str(answer.get("error", "the server refused")))
        blocks: list[bytes] = []
        if "buffer" in answer:
            for size in frame_block_sizes(answer):
                while len(received) < size:
                    received += await _some(stream, control)
                blocks.append(bytes(received[:size]))
                del received[:size]
        return answer, blocks


async def _some(stream: trio.SocketStream, control: Path) -> bytes:
    data = await stream.receive_some(1 << 20)
    if not data:
        raise ControlError(f"{control}: the server hung up")
    return bytes(data)
