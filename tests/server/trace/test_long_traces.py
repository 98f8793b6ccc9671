"""A trace of 100,000 messages takes no more memory than one of 10,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import Command, RegionRead, RegionReadReply, Version, encode_reply, encode_request
from protocol.pcapng import Direction
from protocol.trace import SessionInfo
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing
from tests.server.trace import peak_memory

SHORT, LONG = 10_000, 100_000
SPARE_KIB = 4 << 10
"""What the allocator may take more or less from run to run; 90,000 messages of 100 bytes each would be 9 MB."""
BAR4 = 4

_RUN = """
from server.cli import main
said = main(sys.argv[1:])
"""


def write_trace(path: Path, messages: int) -> None:
    ring = TraceRing(path)
    recorder = Recorder(ring, SessionInfo("test", "virtio-gpu"))
    recorder.start()
    recorder.message(Direction.INBOUND, encode_request(0, Version(0, 1)))
    recorder.message(Direction.OUTBOUND, encode_reply(0, Command.VERSION, Version(0, 1)))
    for number in range(messages // 2 - 1):
        message_id = number % 1000
        recorder.message(Direction.INBOUND, encode_request(message_id, RegionRead(number % 64, BAR4, 4)))
        reply = RegionReadReply(number % 64, BAR4, number.to_bytes(4, "little"))
        recorder.message(Direction.OUTBOUND, encode_reply(message_id, Command.REGION_READ, reply))
        recorder.read(number % 4096, number.to_bytes(8, "little"))
        recorder.wrote(4096, bytes(8))
    recorder.flush()
    ring.close()


def peak_kib(*arguments: str) -> int:
    """The most memory that a command of vgpud has, in KiB."""
    status, peak = peak_memory.run(_RUN, "trace", *arguments)
    assert status == 0
    return peak


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("long")
    for messages in (SHORT, LONG):
        write_trace(folder / f"{messages}.pcapng", messages)
    return folder / f"{SHORT}.pcapng", folder / f"{LONG}.pcapng"


@pytest.mark.parametrize(
    "how", [("show", "--events"), ("show", "--stats"), ("export", "--json", "-")], ids=" ".join
)
def test_reading_a_long_trace_takes_no_more_memory(traces: tuple[Path, Path], how: tuple[str, ...]) -> None:
    short, long = (peak_kib(*how, str(trace)) for trace in traces)
    assert long < short + SPARE_KIB


def test_comparing_long_traces_takes_no_more_memory(traces: tuple[Path, Path]) -> None:
    short, long = (peak_kib("diff", str(trace), str(trace)) for trace in traces)
    assert long < short + SPARE_KIB
