"""A client that unmaps a range and maps a part of it anew does not wait for the first reply; QEMU is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from protocol import (
    Command,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapReply,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteReply,
)
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS
from tests.server.trace.replay.sessions import BASE, DOORBELL, RESULT, STUCK, U64, Squares, replayed
from tests.server.trace.replay.traces import MEMFD, made_up

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE


def write_trace(path: Path) -> None:
    """All is mapped, taken back and half of it given anew at once, and the device works there."""
    with made_up(path) as trace:
        trace.ask(DmaMap(BASE, 2 * PAGE, READ_WRITE), (MEMFD,))
        trace.reply(Command.DMA_MAP)
        trace.ask(DmaUnmap(BASE, 2 * PAGE), message_id=2)
        trace.ask(DmaMap(BASE, PAGE, READ_WRITE), (MEMFD,), message_id=3)
        trace.reply(Command.DMA_UNMAP, DmaUnmapReply(BASE, 2 * PAGE), message_id=2)
        trace.reply(Command.DMA_MAP, message_id=3)
        trace.ask(RegionWrite(DOORBELL, BAR0, U64.pack(BASE)))
        trace.reply(Command.REGION_WRITE, RegionWriteReply(DOORBELL, BAR0, 8))
        trace.recorder.read(BASE, U64.pack(9))
        trace.recorder.wrote(BASE + 8, U64.pack(10))
        trace.ask(RegionRead(RESULT, BAR0, 8))
        trace.reply(Command.REGION_READ, RegionReadReply(RESULT, BAR0, U64.pack(81)))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("memory", ["shared", "message"])
async def test_a_map_that_is_sent_before_the_unmap_is_answered_stays(
    tmp_path: Path, transport: str, memory: str, autojump_clock: MockClock
) -> None:
    trace = tmp_path / "trace"
    write_trace(trace)
    report = await replayed(trace, Squares(), transport=transport, memory=memory)
    assert report.same, report.first
    assert (report.reads, report.writes) == (1, 1)

    class Wrong(Squares):
        async def work(self, address: int) -> None:
            await self.memory.read(address, U64.size)
            await self.memory.write(address + U64.size, U64.pack(77))

    report = await replayed(trace, Wrong(), transport=transport, memory=memory, options=STUCK)
    assert not report.same


async def test_with_shared_memory_a_write_to_where_nothing_is_mapped_is_a_divergence(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(DmaMap(BASE, PAGE, READ_WRITE), (MEMFD,))
        trace.reply(Command.DMA_MAP)
        trace.recorder.wrote(BASE + PAGE, b"nowhere")
    report = await replayed(path, RegisterDevice(), memory="shared")
    assert report.first is not None
    assert (
        report.first.what == f"guest address {BASE + PAGE:#x}, where the recorded server wrote, is not mapped"
    )
