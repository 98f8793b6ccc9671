"""The control socket: status, screenshots, and whatever else is sent to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from devices.display import CursorImage, Frame, NothingOnScanout, PixelBuffer, PixelLayout, ScanoutInfo
from devices.work import Work, pause
from protocol import Command, DmaMap, DmaMapFlags
from server.client import open_client
from server.control import IDLE_SECONDS
from server.control_client import capture, screenshot, status
from server.control_protocol import MAX_LINE, ControlError
from server.socket_path import listen_at
from tests.server.register_device import BAR0, DeviceBroken, RegisterDevice
from tests.server.running import Server, running_server
from tests.server.transports.raw import greeted_client

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
        (b"{}", "unknown command None; there are display, screenshot, status"),
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
            raise AssertionError("the server took it all")
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


class BrokenScreens(Screens):
    """A display that fails as a device's own fault would."""

    async def _capture(self, scanout: int) -> Frame:
        await pause()
        raise DeviceBroken("capture")


@pytest.mark.parametrize("attached", [False, True])
async def test_a_device_that_fails_is_a_refusal_and_the_server_goes_on(
    server: Server, attached: bool
) -> None:
    device = server.engine.device
    assert isinstance(device, RegisterDevice)
    device.screens = BrokenScreens()
    async with AsyncExitStack() as stack:
        if attached:
            await stack.enter_async_context(open_client(server.path))
        with pytest.raises(ControlError, match="the device failed"):
            await capture(server.control, 0)
        device.broken.add("status")
        with pytest.raises(ControlError, match="the device failed"):
            await status(server.control)
        device.broken.clear()
        assert (await status(server.control))["device"] == "registers"


class WaitingScreens(Screens):
    """A display that shows memory which the client did not share."""

    def __init__(self, device: RegisterDevice) -> None:
        self._device = device

    async def _capture(self, scanout: int) -> Frame:
        data = await self._device.attached.memory.read(0, 8)
        return Frame(scanout, PixelBuffer(2, 1, 8, PixelLayout.BGRX, data))


class OneMemory:
    """A client's memory of eight bytes, which may keep its server waiting for ever."""

    def __init__(self) -> None:
        self.asked = trio.Event()

    def read(self, address: int, count: int) -> bytes:
        self.asked.set()
        return b"pictured"[address : address + count]

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError


async def test_a_screenshot_of_memory_that_is_not_shared_asks_an_idle_client(server: Server) -> None:
    device = server.engine.device
    assert isinstance(device, RegisterDevice)
    device.screens = WaitingScreens(device)
    async with open_client(server.path, memory=OneMemory()) as client:
        await client.dma_map(0, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert (await capture(server.control, 0)).buffer.pixels == b"pictured"


async def test_a_client_that_leaves_during_a_screenshot_ends_it(server: Server) -> None:
    device = server.engine.device
    assert isinstance(device, RegisterDevice)
    device.screens = WaitingScreens(device)
    refused = trio.Event()

    async def take() -> None:
        with pytest.raises(ControlError):
            await capture(server.control, 0)
        refused.set()

    async with trio.open_nursery() as nursery:
        async with greeted_client(server.path) as client:
            await client.ask(DmaMap(0, 4096, DmaMapFlags.READ))
            nursery.start_soon(take)
            assert (await client.message()).header.command == Command.DMA_READ
        await refused.wait()


async def test_a_line_that_is_too_long_is_answered_with_why(server: Server) -> None:
    async with await trio.open_unix_socket(str(server.control)) as stream:
        await stream.send_all(b"x" * (MAX_LINE + 1))
        answer = json.loads(await stream.receive_some(MAX_LINE))
        assert "longer than" in answer["error"]
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some(1) == b""


async def test_a_client_that_says_nothing_is_let_go(server: Server, autojump_clock: MockClock) -> None:
    async with await trio.open_unix_socket(str(server.control)) as stream:
        assert await stream.receive_some(1) == b""
    assert trio.current_time() == pytest.approx(IDLE_SECONDS)


async def test_a_client_that_does_not_take_its_answer_is_let_go(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def large(_scanout: int) -> Frame:
        return Frame(0, PixelBuffer(1024, 1024, 4096, PixelLayout.BGRX, bytes(4 << 20)))

    monkeypatch.setattr(server.engine, "capture", large)
    async with await trio.open_unix_socket(str(server.control)) as stream:
        await stream.send_all(b'{"command":"screenshot"}\n')
        await trio.sleep(IDLE_SECONDS + 1)
        received = 0
        while data := await stream.receive_some():
            received += len(data)
    assert 0 < received < 4 << 20


async def test_the_time_that_an_answer_takes_is_none_of_its_client_s_silence(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(_scanout: int) -> Frame:
        await trio.sleep(5)
        return FRAME

    monkeypatch.setattr(server.engine, "capture", slow)
    async with await trio.open_unix_socket(str(server.control)) as stream:
        await trio.sleep(IDLE_SECONDS - 1)
        await stream.send_all(b'{"command":"screenshot"}\n')
        assert (await stream.receive_some(MAX_LINE)).startswith(b'{"ok":true')


@asynccontextmanager
async def answering(path: Path, answer: bytes | None) -> AsyncIterator[None]:
    """A server that answers everything with ``answer`` and hangs up, or stays silent."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            if answer is None:
                await trio.sleep_forever()
            if answer:
                await stream.receive_some(MAX_LINE)
                await stream.send_all(answer)

    with listen_at(path) as sock:
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield
            nursery.cancel_scope.cancel()


GOOD = {"width": 2, "height": 2, "stride": 8, "layout": "BGRX", "bytes": 16}


def described(**wrong: object) -> bytes:
    answer = {"ok": True, "scanout": 0, "buffer": {**GOOD, **wrong}, "cursor": None}
    return json.dumps(answer).encode() + b"\n" + bytes(16)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "hung up"),
        (b'{"ok":', "hung up"),
        (b"garbage\n", "not a line of JSON"),
        (b"[]\n", "not a JSON object"),
        (b"x" * (MAX_LINE + 1), "too long"),
        (b"{}\n", "refused"),
        (b'{"ok":false,"error":"because"}\n', "because"),
        (b'{"ok":true}\n', "description is wrong"),
        (b'{"ok":true,"buffer":1}\n', "description is incomplete"),
        (described(bytes=2**40), "out of all proportion"),
        (described(bytes=-1), "out of all proportion"),
        (described(bytes=17), "hung up"),
        (described(layout="CMYK"), "description is wrong"),
        (described(width=0), "description is wrong"),
        (described(width=3), "description is wrong"),
        (described(height=3), "description is wrong"),
        (described(height=-1), "description is wrong"),
        (described(stride="wide"), "description is wrong"),
    ],
)
async def test_a_server_that_answers_nonsense_is_one_line(tmp_path: Path, answer: bytes, says: str) -> None:
    async with answering(tmp_path / "x", answer):
        with pytest.raises(ControlError, match=says) as error:
            await capture(tmp_path / "x", 0)
        assert "\n" not in str(error.value)


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with answering(tmp_path / "x", None):
        with pytest.raises(ControlError, match="did not answer in 10 s"):
            await status(tmp_path / "x")


async def test_a_status_without_a_status_is_one_line(tmp_path: Path) -> None:
    async with answering(tmp_path / "x", b'{"ok":true,"status":7}\n'):
        with pytest.raises(ControlError, match="has no status"):
            await status(tmp_path / "x")


async def test_a_path_that_no_socket_can_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="too long"):
        await status(tmp_path / ("x" * 200))
