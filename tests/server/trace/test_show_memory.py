"""What it takes to look at a trace does not grow with the trace."""

from __future__ import annotations

import gc
import itertools
import sys
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from protocol import Command, RegionRead, RegionReadReply, encode_reply, encode_request
from protocol.pcapng import Direction
from server.cli import main
from server.trace import pairing
from server.trace import recorder as recorder_module
from server.trace.diff import exchanges, sides
from server.trace.export.json_lines import export_json
from server.trace.reader import TraceReader
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing
from server.trace.trace_files import TraceFile
from tests.server.trace.show_files import GPU

SHORT, LONG = 1_000, 10_000
"""Messages."""
FEW = 100
"""What may be held of them at a time, so that the short trace fills it too."""
GROWTH = 150_000
"""Bytes: 17 for each message more; one that is kept takes more than 500."""


def record(path: Path, messages: int, seed: int) -> None:
    """Reads, of which some differ by ``seed``, and every other has no reply; and interrupts."""
    random = Random(seed)  # noqa: S311 - nothing secret
    ring = TraceRing(path)
    recorder = Recorder(ring, GPU)
    recorder.start()
    for number in range(messages // 3):
        offset = 4 * (number % 64)
        for message_id in (number & 0xFFFF, number & 0xFFFF):
            recorder.message(Direction.INBOUND, encode_request(message_id, RegionRead(offset, 4, 4)))
        data = RegionReadReply(offset, 4, bytes([random.randrange(8) == 0, 0, 0, 0]))
        recorder.message(Direction.OUTBOUND, encode_reply(number & 0xFFFF, Command.REGION_READ, data))
        recorder.interrupt(2, number % 3)
    recorder.flush()
    ring.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine replies take times of all kinds, each of which a summary counts by itself.
        patch.setattr(recorder_module, "_now", itertools.count(10**18, 1000).__next__)
        for messages in (SHORT, LONG):
            record(folder / f"a{messages}", messages, 1)
            record(folder / f"b{messages}", messages, 2)
    return folder


@pytest.fixture(autouse=True)
def little_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MAX_WAITING", FEW)
    monkeypatch.setattr(sides, "MAX_ITEMS", FEW)
    monkeypatch.setattr(exchanges, "MAX_AHEAD", FEW)
    monkeypatch.setattr(TraceFile.read, "__defaults__", (1 << 12,))


class Nowhere:
    """Output that is counted and forgotten."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        return len(text)

    def writelines(self, texts: object) -> None:
        assert hasattr(texts, "__iter__")
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        pass


def peak_of(arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The most memory that a command has in use at a time, and how many lines it prints."""
    output = Nowhere()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        gc.collect()
        tracemalloc.start()
        try:
            assert main(arguments) == status
            return tracemalloc.get_traced_memory()[1], output.lines
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "how", [["show"], ["show", "--events", "--json"], ["show", "--stats"], ["show", "--errors"]], ids=" ".join
)
def test_memory_for_showing_is_bounded(how: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak_of(["trace", *how, str(folder / f"a{SHORT}")], 0, monkeypatch)  # what is made once
    short, _ = peak_of(["trace", *how, str(folder / f"a{SHORT}")], 0, monkeypatch)
    long, lines = peak_of(["trace", *how, str(folder / f"a{LONG}")], 0, monkeypatch)

    assert long - short < GROWTH
    if how[-1] in ("show", "--json"):
        assert lines >= LONG - 2


@pytest.mark.parametrize("how", [["diff"], ["diff", "--events"]], ids=" ".join)
def test_memory_for_comparing_is_bounded(
    how: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [
        peak_of(["trace", *how, str(folder / f"a{size}"), str(folder / f"b{size}")], 1, monkeypatch)[0]
        for size in (SHORT, SHORT, LONG)
    ]

    assert peaks[2] - peaks[1] < GROWTH


def test_memory_for_exporting_is_bounded(folder: Path) -> None:
    peaks = []
    for size in (SHORT, SHORT, LONG):
        tracemalloc.start()
        with TraceReader(folder / f"a{size}") as reader:
            export_json(reader, Nowhere())  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[2] - peaks[1] < GROWTH
