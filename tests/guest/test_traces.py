"""A stock guest is recorded while it boots and draws: the trace alone tells what it saw, and what it was answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from devices.models import MODELS
from devices.registry import create_device
from server.screenshot import compose
from server.trace.export.frames import export_frames
from server.trace.export.pictures import Folder
from server.trace.reader import TraceReader
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.replay import host, replay
from server.trace.ring import FILES, MIN_LIMIT
from tests.guest.support import GuestParts
from tests.guest.virtual_gpu import drawn_pattern, serving
from tests.server.running import TRANSPORTS

pytestmark = pytest.mark.guest

on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


@on_both_transports
async def test_a_recorded_boot_replays_identically_on_both_transports_and_shows_its_screen(
    parts: GuestParts, tmp_path: Path, transport: str
) -> None:
    trace = tmp_path / "trace.pcapng"
    options = ("--transport", transport, "--trace", str(trace))
    async with serving(tmp_path, *options) as server, parts.boot(server.gpu()) as guest:
        screen = compose(await drawn_pattern(guest, server))
    with TraceReader(trace) as reader:
        session = RecordedSession(reader, 1)
        assert session.info.transport == transport
        for other in TRANSPORTS.values():
            device = create_device(MODELS, session.info.device)
            report = await replay(session, host(device, other()))
            assert report.same, report.first
            assert report.stopped is None
        folder = Folder(tmp_path / "frames")
        assert (await export_frames(reader, 1, 0, folder)).same
    assert reader.cut_short == 0
    assert any(shows(file, screen) for file in sorted((tmp_path / "frames").iterdir()))


def shows(file: Path, screen: Image.Image) -> bool:
    with Image.open(file) as picture:
        same_size = picture.size == screen.size
        return same_size and ImageChops.difference(picture.convert("RGB"), screen).getbbox() is None


def ring_of(trace: Path) -> list[Path]:
    return sorted(trace.parent.glob(f"{trace.name}*"))


async def test_a_trace_stays_within_its_limit_while_a_guest_draws_on(
    parts: GuestParts, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.pcapng"
    options = ("--trace", str(trace), "--trace-limit", f"{MIN_LIMIT >> 20}M")
    device = "virtio-gpu,width=1920,height=1080"
    async with serving(tmp_path, *options, device=device) as server, parts.boot(server.gpu()) as guest:
        # Noise cannot be compressed: each of these writes is 8 MB to be recorded.
        for _ in range(4):
            await guest.check("cat /dev/urandom >/dev/fb0 2>/dev/null; true")
        await guest.check("sleep 1")
    files = ring_of(trace)
    assert len(files) == FILES
    assert sum(file.stat().st_size for file in files) <= MIN_LIMIT + (1 << 20)
    for file in files:
        with TraceReader(file) as reader:
            assert sum(1 for _ in reader) > 0
