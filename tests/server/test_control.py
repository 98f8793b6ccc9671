"""The control socket: status, screenshots, and whatever else is sent to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from devices.display import CursorImage, Frame, NothingOnScanout, PixelBuffer, PixelLayout, ScanoutInfo
from devices.work import Work, pause
from server.client import open_client
from server.control_client import capture, screenshot, status
from server.control_protocol import MAX_LINE, ControlError
from tests.server.register_device import BAR0, RegisterDevice
from tests.server.running import Server, running_server

FRAME = Frame(
    1,
    PixelBuffer(2, 1, 8, PixelLayout.BGRX, bytes(range(8))),
    CursorImage(-3, 4, PixelBuffer(1, 1, 4, PixelLayout.BGRA, b"curs")),
)


class Screens:
    """A display with a picture on scanout 1, and none on scanout 0."""

    scanouts: Sequence[ScanoutInfo] = ()

    def capture(self, scanout: int) -> Work:
        return self._capture(scanout)

    async def _capture(self, scanout: int) -> Frame:
        await pause()
        if not 0 <= scanout <= 1:
            raise IndexError(scanout)
        if scanout == 0:
            raise NothingOnScanout
        return FRAME

    def set_mode(self, scanout: int, width: int, height: int, *, connected: bool = True) -> None:
        raise AssertionError


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    device = RegisterDevice()
    device.screens = Screens()
    async with running_server(device) as server:
        yield server


async def test_status_tells_of_the_client_that_is_attached(server: Server) -> None:
    assert (await status(server.control))["client"] is None
    async with open_client(server.path) as client:
        await client.region_read(BAR0, 0, 4)
        now = await status(server.control)
        assert now["device"] == "registers"
        assert now["client"]["region_reads"] == 1
        assert now["client"]["memory"]["domain"] == "soft"


@pytest.mark.parametrize("attached", [False, True])
async def test_a_screenshot_comes_back_as_the_device_gave_it(server: Server, attached: bool) -> None:
    if not attached:
        assert await capture(server.control, 1) == FRAME
        return
    async with open_client(server.path):
        assert await capture(server.control, 1) == FRAME


async def test_a_screenshot_is_saved_where_it_was_asked_for(server: Server, tmp_path: Path) -> None:
    await screenshot(server.control, tmp_path / "x.png", 1)
    assert (tmp_path / "x.png").exists()
    with pytest.raises(ControlError, match="cannot be written"):
        await screenshot(server.control, tmp_path / "no" / "x.png", 1)


async def test_what_cannot_be_captured_is_one_line(server: Server) -> None:
    with pytest.raises(ControlError, match="shows nothing on scanout 0"):
        await capture(server.control, 0)
    with pytest.raises(ControlError, match="there is no scanout 7"):
        await capture(server.control, 7)
    device = server.engine.device
    assert isinstance(device, RegisterDevice)
    device.screens = None
    with pytest.raises(ControlError, match="registers has no screen"):
        await capture(server.control, 0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"garbage", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 20000, "not a line of JSON"),
        (b"{}", "unknown command None; there are screenshot, status"),
        (b'{"command":["status"]}', "unknown command"),
        (b'{"command":"screenshot","scanout":"0"}', "scanout takes a number"),
        (b'{"command":"screenshot","scanout":true}', "scanout takes a number"),
    ],
)
async def test_a_line_that_makes_no_sense_is_answered_with_why(
    server: Server, line: bytes, says: str
) -> None:
    async with await trio.open_unix_socket(str(server.control)) as stream:
        for _ in range(2):
            await stream.send_all(line + b"\n")
            answer = json.loads(await stream.receive_some(MAX_LINE))
            assert answer["ok"] is False
            assert says in answer["error"]


async def test_a_line_without_end_is_cut_off(server: Server) -> None:
    async with await trio.open_unix_socket(str(server.control)) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"x" * (64 * MAX_LINE))
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some(1) == b""
    assert (await status(server.control))["device"] == "registers"


async def test_requests_in_one_write_are_answered_one_by_one(server: Server) -> None:
    async with await trio.open_unix_socket(str(server.control)) as stream:
        await stream.send_all(b'{"command":"status"}\n' * 3)
        received = b""
        while received.count(b"\n") < 3:
            received += await stream.receive_some(MAX_LINE)
    assert all(json.loads(line)["ok"] for line in received.splitlines())


async def test_no_server_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="start one with --control"):
        await status(tmp_path / "nobody")
