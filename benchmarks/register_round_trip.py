"""Register round trip, REGION_READ of 4 bytes: our server against a blocking C server on libvfio-user.

The same client asks both in turn, and again, in one run. Also: the CPU time that our server uses while idle.

usage: python -m benchmarks.register_round_trip [--rounds N] [--reads N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.servers import BlockingClient, c_server, our_server
from protocol import REGION_ACCESS, Command, PciRegion

OUR_BAR = PciRegion.BAR4
C_BAR = PciRegion.BAR0
IDLE_SECONDS = 2.0


def round_trips(client: BlockingClient, region: int, reads: int) -> list[float]:
    """Microseconds of each of ``reads`` round trips."""
    request = client.message(Command.REGION_READ, REGION_ACCESS.pack(0, region, 4))
    send, receive, clock = client.socket.send, client.socket.recv_into, time.perf_counter_ns
    buffer = bytearray(64)
    times = []
    for _ in range(reads):
        began = clock()
        send(request)
        receive(buffer)
        times.append((clock() - began) / 1000)
    return times


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[int(len(times) * share)]


def idle_share(client: BlockingClient) -> float:
    """Share of one CPU that the server behind ``client`` uses while nothing is asked of it."""
    pid = int.from_bytes(client.socket.getsockopt(1, 17, 12)[:4], "little")

    def cpu_ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = cpu_ticks()
    time.sleep(IDLE_SECONDS)
    return (cpu_ticks() - before) / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with our_server(folder) as our_path, c_server(folder) as c_path:
            ours, c = BlockingClient(our_path), BlockingClient(c_path)
            round_trips(ours, OUR_BAR, 1000)
            round_trips(c, C_BAR, 1000)
            figures: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": []}
            for _ in range(arguments.rounds):
                of_c = round_trips(c, C_BAR, arguments.reads)
                of_ours = round_trips(ours, OUR_BAR, arguments.reads)
                for label, share in (("p50", 0.5), ("p99", 0.99)):
                    figures[label].append((percentile(of_ours, share), percentile(of_c, share)))
            idle = idle_share(ours)
            ours.close()
            c.close()
    print(f"{'us':5} {'ours':>8} {'C, libvfio-user':>16} {'ours/C, median of rounds':>25}")
    for label, pairs in figures.items():
        ratio = statistics.median(our / their for our, their in pairs)
        our, their = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{label:5} {our:8.1f} {their:16.1f} {ratio:25.2f}")
    print(f"idle server: {idle:.1%} of a CPU")


if __name__ == "__main__":
    main()
