"""A trace of another server: libvfio-user's sample of a GPIO card, as QEMU and Linux saw it through the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from protocol import HEADER, PciRegion, RegionReadReply
from server.guest.cache import cache_dir
from server.guest.child import started
from server.instances.state import listening_paths
from server.trace.pairing import DecodedMessage, walk
from server.trace.reader import TraceReader
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.replay import replay

TRACE = Path(__file__).parents[2] / "traces" / "gpio.pcapng"
START_SECONDS = 120.0


@asynccontextmanager
async def gpio_card(folder: Path) -> AsyncIterator[Path]:
    """The sample, which `make libvfio-user` has built; it serves one client."""
    path = folder / "gpio.sock"
    program = cache_dir() / "libvfio-user" / "bin" / "gpio-pci-idio-16"
    async with started("gpio", [str(program), str(path)]) as process:
        with trio.fail_after(START_SECONDS):
            # To connect is no way to find out: it serves one client. And it binds before it listens.
            while str(path) not in listening_paths():
                assert not process.log.ended, process.log.tail
                await trio.sleep(0.01)
        yield path


async def test_the_sample_does_again_what_it_did_for_qemu(tmp_path: Path) -> None:
    async with gpio_card(tmp_path) as path:
        with TraceReader(TRACE) as reader:
            report = await replay(RecordedSession(reader, 1), path)
    assert report.same, report.first
    assert report.sent > 150


async def test_a_bit_of_its_pins_is_not_overlooked(tmp_path: Path) -> None:
    whole = TRACE.read_bytes()
    with TraceReader(TRACE) as reader:
        pins = [
            one
            for one in walk(reader)
            if isinstance(one, DecodedMessage)
            and isinstance(one.value, RegionReadReply)
            and one.value.region == PciRegion.BAR2
        ]
    last = pins[-2].message
    message = HEADER.pack(*last.header) + bytes(last.payload)
    at = whole.index(message) + len(message) - 1
    trace = tmp_path / "trace.pcapng"
    trace.write_bytes(whole[:at] + bytes([whole[at] ^ 0x08]) + whole[at + 1 :])
    async with gpio_card(tmp_path) as path:
        with TraceReader(trace) as reader:
            report = await replay(RecordedSession(reader, 1), path)
    assert report.divergences == 1
    assert report.first is not None
    assert report.first.at is not None
    assert report.first.at.number == last.number
