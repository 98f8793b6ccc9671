"""A proxy looks at framebuffers that clients map through it: a display's, in memfds, and never when it is too late."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trio

from devices.bochs_display import BochsDisplay, BochsDisplayOptions
from devices.display import Frame
from protocol import (
    Command,
    Decoder,
    DeviceReset,
    GetRegionInfo,
    PciRegion,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    SparseArea,
    SparseMmap,
    Version,
    encode_reply,
    max_message_size,
)
from protocol.codec import Packable
from protocol.trace import SessionInfo
from server.client import open_client
from server.native.serve import ConnectionOptions
from server.screenshot import compose
from server.trace.export.frames import export_frames
from server.trace.mapped_areas import keep_looking
from server.trace.proxy import seen_areas
from server.trace.proxy.seen_areas import SeenAreas
from server.trace.proxy.tap import SessionRecorder
from server.trace.reader import Traced, TracedLook, TracedMessage, TracedSession, TraceReader
from server.trace.ring import TraceRing
from tests.server.register_device import PAGE
from tests.server.running import running_server
from tests.server.test_bochs_display import GREEN, HEIGHT, RED, VRAM_SIZE, WIDTH, mapped, set_mode
from tests.server.trace.proxy.proxies import Pair, proxied_pair, running_proxy

BAR0, CONFIG = PciRegion.BAR0, PciRegion.CONFIG
MAPPABLE = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
OFFER = RegionInfo(BAR0, MAPPABLE, 4 * PAGE)
DISPLAY, NETWORK = 0x03, 0x02


@pytest.fixture
def screen() -> Iterator[int]:
    """What the server offers as its framebuffer."""
    fd = os.memfd_create("screen", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
async def greeted(pair: Pair) -> Pair:
    """Both have said VERSION, as ever."""
    await pair.client.command(Version(0, 1))
    await answer(pair, Version(0, 1), [])
    return pair


class Pictures:
    """Keeps what was on the screen."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def put(self, _seconds: float, frame: Frame) -> None:
        self.frames.append(frame)

    def finish(self) -> int:
        return len(self.frames)

    def close(self) -> None:
        pass


async def answer(pair: Pair, reply: Packable, fds: list[int]) -> None:
    """Have the server answer what the client asks, and the client take it."""
    request = await pair.server.message()
    await pair.server.send(
        encode_reply(request.header.message_id, Command(request.header.command), reply), fds
    )
    for fd in (await pair.client.message()).fds:
        os.close(fd)


async def offer(pair: Pair, info: RegionInfo, fds: list[int]) -> None:
    await pair.client.command(GetRegionInfo(info.index))
    await answer(pair, info, fds)


async def say_class(pair: Pair, number: int, at: int = 0) -> None:
    """The client reads configuration space from ``at`` on, where the class is."""
    header = bytes(11) + bytes([number]) + bytes(52)
    await pair.client.command(RegionRead(at, CONFIG, 64 - at))
    await answer(pair, RegionReadReply(at, CONFIG, header[at:]), [])


async def end(pair: Pair, *, listens: bool = False) -> None:
    """The client says no more, and the server hears of it."""
    if listens:
        pair.client.sock.shutdown(socket.SHUT_WR)
    else:
        pair.client.sock.close()
    with trio.fail_after(60):
        assert await pair.server.sock.recv(1) == b""


def looks_in(recorded: Sequence[Traced]) -> list[list[tuple[int, int, bytes]]]:
    """What each look has found, where that is short."""
    return [
        [(change.region, change.offset, change.data or b"") for change in one.look.changes]
        for one in recorded
        if isinstance(one, TracedLook)
    ]


@pytest.mark.parametrize("full", [False, True])
async def test_what_a_client_draws_is_in_the_trace_and_can_be_exported(tmp_path: Path, full: bool) -> None:
    """With full visibility, by message: nothing can be mapped."""
    device = BochsDisplay(BochsDisplayOptions(width=1024, height=768, vgamem=VRAM_SIZE))
    picture = RED * (WIDTH * HEIGHT - 1) + GREEN
    async with (
        running_server(device, ConnectionOptions()) as server,
        running_proxy(server.path, tmp_path, full=full, once=True) as proxy,
        open_client(proxy.path) as client,
    ):
        await client.region_read(CONFIG, 0, 64)
        if full:
            _, fds = await client.get_region_info(BAR0)
            fds.close()
            await client.region_write(BAR0, 0, picture)
            await set_mode(client)
        else:
            async with mapped(client) as framebuffer:
                await set_mode(client)
                framebuffer[: len(picture)] = picture
    device.close()
    pictures = Pictures()
    with TraceReader(tmp_path / "trace") as reader:
        await export_frames(reader, 1, 0, pictures)
    image = compose(pictures.frames[-1])
    assert image.size == (WIDTH, HEIGHT)
    corners = [image.getpixel((x, y)) for y in (0, HEIGHT - 1) for x in (0, WIDTH - 1)]
    assert corners == [(255, 0, 0)] * 3 + [(0, 255, 0)]


@pytest.mark.parametrize("at", [0, 8, 11])
@pytest.mark.parametrize("order", ["class first", "area first"])
@pytest.mark.parametrize("listens", [False, True])
async def test_a_display_is_looked_at_before_the_server_hears_of_the_end(
    greeted: Pair, screen: int, order: str, at: int, listens: bool
) -> None:
    if order == "class first":
        await say_class(greeted, DISPLAY, at)
    await offer(greeted, OFFER, [screen])
    if order == "area first":
        await say_class(greeted, DISPLAY, at)
    os.pwrite(screen, b"drawn", 100)
    await end(greeted, listens=listens)
    os.pwrite(screen, bytes(PAGE), 0)  # as servers reset their device then
    greeted.server.sock.close()
    with trio.fail_after(60):
        while listens and await greeted.client.sock.recv(1):
            pass
    found = [change for look in looks_in(greeted.proxy.recorded()) for change in look]
    assert found == [(BAR0, 100, b"drawn")]


async def test_a_display_is_looked_at_before_the_server_hears_of_a_reset(greeted: Pair, screen: int) -> None:
    await offer(greeted, OFFER, [screen])
    await say_class(greeted, DISPLAY)
    os.pwrite(screen, b"drawn", 100)
    await greeted.client.command(DeviceReset())
    request = await greeted.server.message()
    os.pwrite(screen, bytes(5), 100)
    await end(greeted)
    recorded = [
        one
        for one in greeted.proxy.recorded()
        if isinstance(one, TracedLook)
        or (isinstance(one, TracedMessage) and one.header.command == request.header.command)
    ]
    drawn = [(BAR0, 100, b"drawn")]
    assert [change for look in looks_in(recorded) for change in look] == [*drawn, (BAR0, 100, bytes(5))]
    before = recorded[: next(at for at, one in enumerate(recorded) if isinstance(one, TracedMessage))]
    assert [change for look in looks_in(before) for change in look] == drawn


async def test_what_is_read_by_message_is_looked_at_before(greeted: Pair, screen: int) -> None:
    await offer(greeted, OFFER, [screen])
    await say_class(greeted, DISPLAY)
    os.pwrite(screen, b"drawn", 100)
    await greeted.client.command(RegionRead(101, BAR0, 2))
    await greeted.server.message()
    os.pwrite(screen, b"DRAWN", 100)
    await end(greeted)
    found = [change for look in looks_in(greeted.proxy.recorded()) for change in look]
    assert found[0] in ((BAR0, 101, b"ra"), (BAR0, 100, b"drawn"))  # where a look was due, it has come before
    assert found[-1] == (BAR0, 100, b"DRAWN")


@pytest.mark.parametrize("number", [NETWORK, 0, 0xFF, None])
async def test_what_is_no_display_is_not_looked_at(greeted: Pair, screen: int, number: int | None) -> None:
    await offer(greeted, OFFER, [screen])
    if number is not None:
        await say_class(greeted, number)
    os.pwrite(screen, b"drawn", 100)
    await greeted.client.command(RegionRead(100, BAR0, 4))
    await answer(greeted, RegionReadReply(100, BAR0, b"draw"), [])
    await end(greeted)
    assert looks_in(greeted.proxy.recorded()) == []


@pytest.mark.parametrize(
    "info",
    [
        RegionInfo(BAR0, RegionFlags.READ, 4 * PAGE),
        RegionInfo(BAR0, MAPPABLE, 0),
        RegionInfo(BAR0, MAPPABLE, 5 * PAGE),
        RegionInfo(BAR0, MAPPABLE, 2**64 - 1),
        RegionInfo(BAR0, MAPPABLE, 4 * PAGE, offset=2**64 - 1),
        RegionInfo(BAR0, MAPPABLE, 4 * PAGE, offset=PAGE),
        RegionInfo(PciRegion.VGA, MAPPABLE, PAGE),
        RegionInfo(2**32 - 1, MAPPABLE, PAGE),
        RegionInfo(BAR0, MAPPABLE, 4 * PAGE, 0, (SparseMmap(()),)),
        RegionInfo(BAR0, MAPPABLE, 4 * PAGE, 0, (SparseMmap((SparseArea(2**64 - 1, 2**64 - 1),)),)),
    ],
)
async def test_what_cannot_be_is_not_looked_at_and_passes(
    greeted: Pair, screen: int, info: RegionInfo
) -> None:
    await say_class(greeted, DISPLAY)
    await offer(greeted, info, [screen])
    os.pwrite(screen, b"drawn", 100)
    await end(greeted)
    assert [change for look in looks_in(greeted.proxy.recorded()) for change in look] == []


async def test_nothing_is_read_from_what_is_no_memfd(greeted: Pair, tmp_path: Path) -> None:
    (tmp_path / "regular").write_bytes(b"somebody's" * PAGE)
    fds = [*os.pipe(), os.open(tmp_path / "regular", os.O_RDONLY), os.eventfd(0)]
    await say_class(greeted, DISPLAY)
    for bar, fd in enumerate(fds):
        await offer(greeted, RegionInfo(bar, MAPPABLE, PAGE), [fd])
    await end(greeted)
    assert looks_in(greeted.proxy.recorded()) == []
    for fd in fds:
        os.close(fd)


def heard_class(number: int, recorder: SessionRecorder) -> SeenAreas:
    """What has heard nothing but the class of the device."""
    decoder = Decoder(max_message_size(PAGE), 0)
    decoder.feed(encode_reply(1, Command.REGION_READ, RegionReadReply(11, CONFIG, bytes([number]))), ())
    areas = SeenAreas(recorder)
    for message in decoder:
        areas.hear(message, [])
    return areas


def test_of_a_display_without_areas_there_is_nothing_to_say(tmp_path: Path) -> None:
    ring = TraceRing(tmp_path / "trace")
    recorder = SessionRecorder(ring, SessionInfo("a proxy"))
    recorder.start()
    for _ in heard_class(DISPLAY, recorder).look():
        pass
    ring.close()
    with TraceReader(tmp_path / "trace") as reader:
        assert [type(one) for one in reader] == [TracedSession]


async def test_nobody_goes_on_looking_at_what_is_no_display(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with closing(TraceRing(tmp_path / "trace")) as ring:
        areas = heard_class(NETWORK, SessionRecorder(ring, SessionInfo("a proxy")))
        with trio.fail_after(60):
            await keep_looking(areas)


async def test_a_file_that_the_server_cuts_does_no_harm(greeted: Pair, screen: int) -> None:
    await say_class(greeted, DISPLAY)
    await offer(greeted, OFFER, [screen])
    os.ftruncate(screen, 102)
    os.pwrite(screen, b"dr", 100)
    await end(greeted)
    found = [change for look in looks_in(greeted.proxy.recorded()) for change in look]
    assert found == [(BAR0, 100, b"dr")]


async def test_an_area_is_looked_at_where_it_was_first_offered(
    greeted: Pair, screen: int, memfd: int
) -> None:
    await say_class(greeted, DISPLAY)
    sparse = SparseMmap((SparseArea(PAGE, PAGE), SparseArea(3 * PAGE, PAGE)))
    for fd in (screen, memfd, memfd):
        await offer(greeted, RegionInfo(BAR0, MAPPABLE, 4 * PAGE, 0, (sparse,)), [fd])
    for page in range(4):
        os.pwrite(screen, b"drawn", page * PAGE)
    os.pwrite(memfd, b"elsewhere", PAGE)
    await end(greeted)
    found = [change for look in looks_in(greeted.proxy.recorded()) for change in look]
    assert found == [(BAR0, PAGE, b"drawn"), (BAR0, 3 * PAGE, b"drawn")]


async def test_areas_may_have_a_file_each(greeted: Pair, screen: int, memfd: int) -> None:
    await say_class(greeted, DISPLAY)
    sparse = SparseMmap((SparseArea(0, PAGE), SparseArea(PAGE, PAGE)))
    await offer(greeted, RegionInfo(BAR0, MAPPABLE, 4 * PAGE, 0, (sparse,)), [screen, memfd])
    os.pwrite(screen, b"one", 0)
    os.pwrite(memfd, b"other", PAGE)
    await end(greeted)
    found = [change for look in looks_in(greeted.proxy.recorded()) for change in look]
    assert found == [(BAR0, 0, b"one"), (BAR0, PAGE, b"other")]


async def test_no_more_is_looked_at_than_there_is_time_for(
    tmp_path: Path, screen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_areas, "MAX_LOOKED_AT", PAGE + 10)
    os.pwrite(screen, b"\xff" * 4 * PAGE, 0)
    async with proxied_pair(tmp_path, full=False) as pair:
        await pair.client.command(Version(0, 1))
        await answer(pair, Version(0, 1), [])
        await say_class(pair, DISPLAY)
        await offer(pair, OFFER, [screen])
        await offer(pair, RegionInfo(1, MAPPABLE, 4 * PAGE), [screen])
        await end(pair)
        looks = [one.look for one in pair.proxy.recorded() if isinstance(one, TracedLook)]
    changes = [(change.region, change.offset, change.length) for look in looks for change in look.changes]
    assert {region for region, _, _ in changes} == {BAR0}
    assert sum(length for _, _, length in changes) == PAGE + 10
