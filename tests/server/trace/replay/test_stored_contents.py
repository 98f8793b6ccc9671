"""A content that is stored once may be in as many events as somebody likes, and costs a replay a bounded amount."""

from __future__ import annotations

from pathlib import Path

from protocol import Command, DmaMap, DmaMapFlags
from protocol.trace import MAX_CONTENT
from server.trace.fd_facts import FdFacts
from server.trace.reader import FD_COST, TraceReader
from server.trace.replay.intervals import MAX_BYTES, RecordedSession
from tests.server.trace import peak_memory
from tests.server.trace.replay.traces import MadeUp, made_up

CONTENT = bytes(range(256)) * (MAX_CONTENT // 256)
READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
SPARE_KIB = 8 << 10
"""What the allocator may take more or less from run to run."""

_RUN = """
from functools import partial
import trio
from tests.server.trace.replay.sessions import Squares, replayed
report = trio.run(partial(replayed, Path(sys.argv[1]), Squares(), memory="shared"))
assert report.same, report.first
said = report.writes
"""


def stored(trace: MadeUp, count: int) -> None:
    """The server finds one content where it is to have written it, at ``count`` places."""
    size = count * MAX_CONTENT
    trace.ask(DmaMap(0, size, READ_WRITE), (FdFacts("memfd", 1, 7, size),))
    trace.reply(Command.DMA_MAP)
    for number in range(count):
        trace.recorder.read(number * MAX_CONTENT, CONTENT)
        trace.recorder.wrote(number * MAX_CONTENT, CONTENT)


def test_memory_does_not_grow_with_how_often_a_content_was_written(tmp_path: Path) -> None:
    peaks = []
    for count in (2 * MAX_BYTES // MAX_CONTENT, 6 * MAX_BYTES // MAX_CONTENT):
        path = tmp_path / f"{count}.pcapng"
        with made_up(path) as trace:
            stored(trace, count)
        assert path.stat().st_size < 256 * count
        writes, peak = peak_memory.run(_RUN, str(path))
        assert writes == count
        peaks.append(peak)
    assert peaks[1] < peaks[0] + SPARE_KIB


def test_an_interval_has_as_much_as_a_replay_keeps_of_it_and_not_what_it_looks_up(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    count = 2 * MAX_BYTES // MAX_CONTENT
    with made_up(path) as trace:
        stored(trace, count)
    with TraceReader(path) as reader:
        sizes = [one.bytes for one in RecordedSession(reader, 1).intervals()]
    assert max(sizes) < MAX_BYTES + MAX_CONTENT
    assert sum(sizes) >= count * MAX_CONTENT
    with made_up(path) as trace:
        for number in range(count):
            trace.recorder.read(number * MAX_CONTENT, CONTENT)
    with TraceReader(path) as reader:
        assert max(one.bytes for one in RecordedSession(reader, 1).intervals()) < MAX_CONTENT


def test_descriptions_of_fds_count(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(DmaMap(0, 4096, READ_WRITE), (FdFacts("other"),) * 500)
    with TraceReader(path) as reader:
        assert max(one.bytes for one in RecordedSession(reader, 1).intervals()) > 500 * FD_COST
