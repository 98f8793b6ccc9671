"""The control socket of a running server, for ``vgpud status``, ``vgpud screenshot`` and ``vgpud display``."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from devices.display import NothingOnScanout
from server.accepting import accept_stream
from server.control_places import Places
from server.control_protocol import MAX_LINE, ControlError, decode_line, encode_frame, encode_line
from server.display.control import serve_display
from server.engine import Engine
from server.log import RepeatLimit

IDLE_SECONDS = 30
"""A client that says nothing for this long, or does not take its answer, is dropped."""
ANSWER_SECONDS = 10
"""How long the device may take for an answer: whoever asks by ``vgpud`` has given up by then."""

Answer = tuple[dict[str, Any], list[bytes]]
Command = Callable[[Engine, dict[str, Any]], Awaitable[Answer]]


async def _status(engine: Engine, _request: dict[str, Any]) -> Answer:
    return {"status": engine.status()}, []


async def _screenshot(engine: Engine, request: dict[str, Any]) -> Answer:
    scanout = request.get("scanout", 0)
    if not isinstance(scanout, int) or isinstance(scanout, bool):
        raise ControlError("scanout takes a number")
    try:
        frame = await engine.capture(scanout)
    except NothingOnScanout as error:
        raise ControlError(f"the guest shows nothing on scanout {scanout}") from error
    except IndexError as error:
        raise ControlError(f"there is no scanout {scanout}") from error
    return encode_frame(frame)


async def _display(engine: Engine, request: dict[str, Any]) -> Answer:
    return serve_display(engine, request), []


COMMANDS: dict[str, Command] = {"status": _status, "screenshot": _screenshot, "display": _display}


async def serve_control(listener: socket.socket, engine: Engine) -> None:
    """Answer clients of the control socket until cancelled."""
    listener.setblocking(False)
    accepting = trio.socket.from_stdlib_socket(listener)
    places = Places()
    log = RepeatLimit(structlog.get_logger())
    async with trio.open_nursery() as nursery:
        while True:
            place = await places.take(accepting)
            stream = await accept_stream(accepting, log, socket="control")
            places.keep(place)
            nursery.start_soon(_serve_client, stream, engine, places, place)


async def _serve_client(
    stream: trio.SocketStream, engine: Engine, places: Places, place: trio.CancelScope
) -> None:
    pending = bytearray()
    try:
        with place:
            async with stream:
                while await _serve_line(stream, pending, engine, places, place):
                    places.keep(place)
    except (trio.BrokenResourceError, trio.TooSlowError):
        return
    finally:
        places.leave(place)


async def _serve_line(
    stream: trio.SocketStream, pending: bytearray, engine: Engine, places: Places, place: trio.CancelScope
) -> bool:
    """Answer the next line; False where there will be no other. Raises TooSlowError."""
    try:
        with trio.fail_after(IDLE_SECONDS):
            line = await read_line(stream, pending)
    except ControlError as error:
        await _send(stream, _refusal(str(error)), [])
        return False
    if line is None:
        return False
    with places.answering(place):
        answer, blocks = await _answer_in_time(engine, line)
    await _send(stream, answer, blocks)
    return True


async def _send(stream: trio.SocketStream, answer: dict[str, Any], blocks: list[bytes]) -> None:
    with trio.fail_after(IDLE_SECONDS):
        await stream.send_all(encode_line(answer))
        for block in blocks:
            await stream.send_all(block)


async def _answer_in_time(engine: Engine, line: bytes) -> Answer:
    with trio.move_on_after(ANSWER_SECONDS):
        return await _answer(engine, line)
    return _refusal(f"the device did not answer in {ANSWER_SECONDS} s"), []


async def _answer(engine: Engine, line: bytes) -> Answer:
    try:
        request = decode_line(line)
        name = request.get("command")
        command = COMMANDS.get(name) if isinstance(name, str) else None
        if command is None:
            raise ControlError(f"unknown command {name!r}; there are {', '.join(sorted(COMMANDS))}")
        fields, blocks = await command(engine, request)
    except ControlError as error:
        return _refusal(str(error)), []
    except OSError as error:
        return _refusal(error.strerror or errno.errorcode.get(error.errno or 0, "error")), []
    except Exception:
        structlog.get_logger().warning("device_fault", where="control", exc_info=True)
        return _refusal("the device failed; the server's log says how"), []
    return {"ok": True, **fields}, blocks


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}


async def read_line(stream: trio.SocketStream, pending: bytearray) -> bytes | None:
    """The next line without its line feed, None at the end; ``pending`` keeps what came behind it.

    Raises ControlError when a line is longer than :data:`MAX_LINE`.
    """
    while (end := pending.find(b"\n")) < 0:
        if len(pending) > MAX_LINE:
            raise ControlError(f"a line is longer than {MAX_LINE} bytes")
        data = await stream.receive_some(MAX_LINE)
        if not data:
            return None
        pending += data
    line = bytes(pending[:end])
    del pending[: end + 1]
    return line
