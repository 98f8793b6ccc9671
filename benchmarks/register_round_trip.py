"""Register round trip, REGION_READ of 4 bytes: our two transports, and a blocking C server on libvfio-user.

The same client asks all of them in turn, and again, in one run. Also: the CPU time that our servers use while idle.

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
        with (
            our_server(folder) as native,
            our_server(folder, transport="libvfio-user") as library,
            c_server(folder) as c,
        ):
            servers: dict[str, tuple[BlockingClient, int]] = {
                "native": (BlockingClient(native), OUR_BAR),
                "libvfio-user, ctypes": (BlockingClient(library), OUR_BAR),
                "libvfio-user, C": (BlockingClient(c), C_BAR),
            }
            figures = measure(servers, arguments.rounds, arguments.reads)
            idle = {name: idle_share(client) for name, (client, _) in servers.items()}
            for client, _ in servers.values():
                client.close()
    print_table(figures, idle)


def measure(
    servers: dict[str, tuple[BlockingClient, int]], rounds: int, reads: int
) -> dict[str, list[tuple[float, float]]]:
    """The 50th and the 99th percentile of each round, in microseconds, by server."""
    for client, bar in servers.values():
        round_trips(client, bar, 1000)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, (client, bar) in servers.items():
            times = round_trips(client, bar, reads)
            figures[name].append((percentile(times, 0.5), percentile(times, 0.99)))
    return figures


def print_table(figures: dict[str, list[tuple[float, float]]], idle: dict[str, float]) -> None:
    """The medians of the rounds, and the median of what each round's p50 is of the native one's."""
    print(f"{'us':22} {'p50':>8} {'p99':>8} {'of native':>10} {'idle CPU':>9}")
    native = [p50 for p50, _ in figures["native"]]
    for name, rounds in figures.items():
        p50, p99 = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(mine / theirs for (mine, _), theirs in zip(rounds, native, strict=True))
        print(f"{name:22} {p50:8.1f} {p99:8.1f} {ratio:10.2f} {idle[name]:9.1%}")


if __name__ == "__main__":
    main()
