"""What looking at a mapped framebuffer costs a server that records.

A look at a screen on which nothing, a line of text or everything has changed is compared with reading the same bytes,
in turn and in one process. What has changed is noise, which takes longest to compress.

usage: python -m benchmarks.area_looks [--rounds N] [--mode WIDTHxHEIGHT]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from devices.bochs_display import BochsDisplay, BochsDisplayOptions
from devices.bochs_display.constants import MMIO_BAR
from protocol.trace import SessionInfo
from server.trace.mapped_areas import IDLE_SECONDS, PAUSE_SECONDS, MappedAreas
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing

VGAMEM = 64 << 20
TEXT_ROWS = 16
"""Rows of pixels of a line of text."""


def set_mode(device: BochsDisplay, width: int, height: int) -> None:
    """Have the device show ``width`` by ``height`` pixels of 32 bits: XRES, YRES, BPP, ENABLE."""
    for index, value in ((1, width), (2, height), (3, 32), (4, 0x41)):
        device.region_write(MMIO_BAR, 0x500 + 2 * index, memoryview(value.to_bytes(2, "little")))


def measure(rounds: int, width: int, height: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of look, and of a read of as many bytes."""
    device = BochsDisplay(BochsDisplayOptions(width=width, height=height, vgamem=VGAMEM))
    set_mode(device, width, height)
    size = 4 * width * height
    file = device.regions[0].shared
    assert file is not None
    buffer = bytearray(size)
    os.pwrite(file.fd, os.urandom(size), 0)
    with tempfile.TemporaryDirectory() as folder:
        ring = TraceRing(Path(folder) / "trace.pcapng")
        recorder = Recorder(ring, SessionInfo("benchmark"))
        recorder.start()
        with MappedAreas(device, recorder) as areas:

            def look() -> None:
                for _ in areas.look():
                    pass

            def read() -> None:
                os.preadv(file.fd, [buffer], 0)

            def changed(length: int) -> None:
                os.pwrite(file.fd, os.urandom(length), size // 2 // 4096 * 4096)

            look()
            kinds: dict[str, tuple[Callable[[], object], Callable[[], None]]] = {
                "a read": (lambda: None, read),
                "nothing": (lambda: None, look),
                "a line of text": (lambda: changed(TEXT_ROWS * 4 * width), look),
                "everything": (lambda: os.pwrite(file.fd, os.urandom(size), 0), look),
            }
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(rounds):
                for kind, (prepare, call) in kinds.items():
                    prepare()
                    before = time.perf_counter_ns()
                    call()
                    times[kind].append((time.perf_counter_ns() - before) / 1e6)
        ring.close()
    device.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--mode", default="1024x768")
    arguments = parser.parse_args()
    times = measure(arguments.rounds, *map(int, arguments.mode.split("x")))
    reads = times.pop("a read")
    print(f"{'changed':16} {'ms':>8} {'of a read':>10} {'share of the time':>18}")
    for kind, looks in times.items():
        took = statistics.median(looks)
        ratio = statistics.median(one / other for one, other in zip(looks, reads, strict=True))
        pause = max(IDLE_SECONDS if kind == "nothing" else PAUSE_SECONDS, 9 * took / 1e3)
        print(f"{kind:16} {took:8.2f} {ratio:10.1f} {took / 1e3 / (took / 1e3 + pause):18.3f}")


if __name__ == "__main__":
    main()
