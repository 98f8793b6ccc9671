"""What the CPU weight of types gives: the CPU time that two busy instances get of the one CPU that both run on.

A real systemd runs them as units (tests/server/instances/booted), so this needs root and mmdebstrap. Each has a client
that posts register writes, without an answer, as fast as the server takes them. The times are those of their cgroups.

usage: python -m benchmarks.cpu_weight [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

from benchmarks.servers import BlockingClient
from protocol import PciRegion, RegionWrite, encode_request
from server.instances.types import find_type
from tests.server.instances.booted.instance import Instance, define
from tests.server.instances.booted.machine import Machine, booted, install

PAIRS = (
    ("vgpud-virtio-1", "vgpud-virtio-1"),
    ("vgpud-virtio-4", "vgpud-virtio-1"),
    ("vgpud-virtio-8", "vgpud-virtio-1"),
)
UUIDS = tuple(UUID(int=(0x4000 << 64) + (0x8000 << 48) + number) for number in (1, 2))
BATCH = 512
SELECT = 0
"""The register of the virtio transport that chooses which features are read next (virtio 1.2, 4.1.4.3)."""


@contextmanager
def kept_busy(path: Path) -> Iterator[None]:
    """Have a client ask the server for more than it can do, from a thread."""
    client = BlockingClient(path)
    # so much that the server has something to do while this waits for a CPU
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    select = RegionWrite(SELECT, PciRegion.BAR4, bytes(4))
    batch = BATCH * encode_request(0, select, no_reply=True)
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            client.socket.sendall(batch)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        client.close()


def run_on(cpu: int, instance: Instance) -> None:
    """Have all threads of an instance's server run there."""
    for pid in instance.machine.pids(instance.service):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cpu})


def cpu_seconds(instance: Instance) -> float:
    """All that it has used."""
    lines = (instance.machine.cgroup(instance.service) / "cpu.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6


def measure(instances: list[Instance], seconds: float) -> list[float]:
    """The CPU time of each, in seconds."""
    with ExitStack() as stack:
        for instance in instances:
            stack.enter_context(kept_busy(instance.socket))
        before = [cpu_seconds(instance) for instance in instances]
        time.sleep(seconds)
        after = [cpu_seconds(instance) for instance in instances]
    return [late - early for late, early in zip(after, before, strict=True)]


def compare(machine: Machine, kinds: tuple[str, str], cpu: int, seconds: float) -> float:
    """How many times the CPU time of the second the first one gets."""
    instances = [define(machine, uuid, kind) for uuid, kind in zip(UUIDS, kinds, strict=True)]
    for instance in instances:
        instance.vgpud("start")
        run_on(cpu, instance)
    one, other = measure(instances, seconds)
    for instance in instances:
        instance.vgpud("stop", "--force")  # what was posted may keep it busy still
        instance.vgpud("undefine")
    print(
        f"{kinds[0]} {one:.2f} s, {kinds[1]} {other:.2f} s, {(one + other) / seconds:.0%} of the CPU",
        flush=True,
    )
    return one / other


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    ours, *others = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(0, others)  # the clients' work is not to be in the way of the servers'
    ratios: dict[tuple[str, str], list[float]] = {kinds: [] for kinds in PAIRS}
    with booted() as machine:
        install(machine)
        for _ in range(arguments.rounds):
            for kinds in PAIRS:
                ratios[kinds].append(compare(machine, kinds, ours, arguments.seconds))
    print(f"{'types':32} {'weights':>10} {'CPU time, median':>17}")
    for kinds, measured in ratios.items():
        weights = ":".join(str(find_type(kind).cpu_weight) for kind in kinds)
        print(f"{', '.join(kinds):32} {weights:>10} {statistics.median(measured):17.2f}")


if __name__ == "__main__":
    main()
