"""Memory that a replay takes does not grow with the length of the trace, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import (
    Command,
    DmaMap,
    DmaMapFlags,
    IrqAction,
    IrqData,
    PciIrq,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteReply,
    SetIrqs,
)
from tests.server.register_device import BAR0, PAGE
from tests.server.trace import peak_memory
from tests.server.trace.replay.sessions import BASE, DOORBELL, RESULT, U64
from tests.server.trace.replay.traces import EVENTFD, MEMFD, MadeUp, made_up

SPARE_KIB = 4 << 10
"""What the allocator may take more or less from run to run; 90,000 messages of 100 bytes each would be 9 MB."""

_RUN = """
import trio
from tests.server.trace.replay.sessions import Squares, replayed
report = trio.run(replayed, Path(sys.argv[1]), Squares())
assert report.same, report.first
said = report.sent + report.replies + report.reads + report.writes + report.interrupts
"""

REGISTER = 64


def reads(trace: MadeUp, count: int) -> None:
    """Requests and replies, in turn; ``count`` messages."""
    for number in range(count // 2):
        message_id = number % 1000
        trace.ask(RegionRead(REGISTER, BAR0, 8), message_id=message_id)
        trace.reply(Command.REGION_READ, RegionReadReply(REGISTER, BAR0, bytes(8)), message_id=message_id)


def posted(trace: MadeUp, count: int) -> None:
    """Nothing but writes that are not answered."""
    for _ in range(count):
        trace.ask(RegionWrite(REGISTER, BAR0, bytes(8)), no_reply=True)


def work(trace: MadeUp, count: int) -> None:
    """Guest memory that is read and written, and interrupts; ``count`` messages and events."""
    trace.ask(SetIrqs(PciIrq.MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), (EVENTFD,))
    trace.reply(Command.DEVICE_SET_IRQS)
    trace.ask(DmaMap(BASE, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE), (MEMFD,))
    trace.reply(Command.DMA_MAP)
    for number in range(count // 7):
        trace.ask(RegionWrite(DOORBELL, BAR0, U64.pack(BASE)))
        trace.reply(Command.REGION_WRITE, RegionWriteReply(DOORBELL, BAR0, 8))
        trace.recorder.read(BASE, U64.pack(number))
        trace.recorder.wrote(BASE + U64.size, U64.pack(number + 1))
        trace.recorder.interrupt(PciIrq.MSIX, 0)
        trace.ask(RegionRead(RESULT, BAR0, 8))
        trace.reply(Command.REGION_READ, RegionReadReply(RESULT, BAR0, U64.pack(number * number)))


@pytest.mark.parametrize(("what", "long"), [(reads, 100_000), (posted, 100_000), (work, 35_000)])
def test_memory_does_not_grow_with_the_length_of_what_is_replayed(
    tmp_path: Path, what: Callable[[MadeUp, int], None], long: int
) -> None:
    peaks = []
    for length in (long // 10, long):
        path = tmp_path / f"{length}.pcapng"
        with made_up(path) as trace:
            what(trace, length)
        count, peak = peak_memory.run(_RUN, str(path))
        assert count >= length
        peaks.append(peak)
    assert peaks[1] < peaks[0] + SPARE_KIB
