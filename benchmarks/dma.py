"""What the DMA core costs: map and unmap against the number of maps, pins, copies and views.

Run it as ``python -m benchmarks.dma``. Times are the best of a few rounds; read the ratios, not the microseconds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from time import perf_counter

from devices.contract import GuestRange, PinnedPages, Prot
from devices.testing import FakeLog
from devices.work import run_to_completion
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.soft import SoftDomain
from server.dma.memory import GuestMemoryMap

READ_WRITE = Prot.READ | Prot.WRITE
GIB = 1 << 30
FEW, MANY = 100, 60_000
ROUNDS = 5


def best(action: Callable[[], float]) -> float:
    """The least seconds that ``action`` reports."""
    return min(action() for _ in range(ROUNDS))


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    start = perf_counter()
    action()
    return perf_counter() - start


def memfd(size: int) -> int:
    """A sparse memfd of ``size`` bytes that can be sealed."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


def on_unmap(_: PinnedPages) -> None:
    """Nothing is unmapped under a pin here."""


def row(name: str, seconds: float, per: int, unit: str, note: str = "") -> None:
    """Print one line: microseconds per ``unit``."""
    print(f"{name:<44} {seconds / per * 1e6:>10.3f} us / {unit:<8} {note}")


def map_and_unmap(domain: SoftDomain, fd: int, maps: int) -> float:
    """Seconds per pair of map and unmap of one page while ``maps`` regions are mapped."""
    memory = GuestMemoryMap(FakeLog(), domain)
    order = random.Random(0).sample(range(2 * MANY), maps + 500)  # noqa: S311 - no secret
    for page in order[:maps]:
        memory.map(2 * page * PAGE_SIZE, PAGE_SIZE, READ_WRITE, os.dup(fd), page * PAGE_SIZE)
    others = order[maps:]

    def once() -> float:
        fds = [os.dup(fd) for _ in others]
        start = perf_counter()
        for page, copy in zip(others, fds, strict=True):
            memory.map(2 * page * PAGE_SIZE, PAGE_SIZE, READ_WRITE, copy, page * PAGE_SIZE)
        for page in others:
            memory.unmap(2 * page * PAGE_SIZE, PAGE_SIZE)
        return perf_counter() - start

    seconds = best(once) / len(others)
    memory.close()
    return seconds


def maps(domain: SoftDomain) -> None:
    """Print what a DMA_MAP and a DMA_UNMAP cost with few and with many maps."""
    fd = memfd(2 * MANY * PAGE_SIZE)
    few, many = (map_and_unmap(domain, fd, count) for count in (FEW, MANY))
    row(f"map + unmap at {FEW} maps", few, 1, "pair")
    row(f"map + unmap at {MANY} maps", many, 1, "pair", f"ratio {many / few:.2f}")
    os.close(fd)


def pins(memory: GuestMemoryMap) -> None:
    """Print what pins cost."""
    pages = GIB // PAGE_SIZE
    whole = [GuestRange(0, GIB)]
    row("pin + release 1 GiB, one run", best(lambda: pin_and_release(memory, whole)), 1, "pin")
    held = memory.pin_pages(whole, READ_WRITE, on_unmap)
    row("re-pin + release 1 GiB, one run", best(lambda: pin_and_release(memory, whole)), 1, "pin")
    held.release()
    numbers = random.Random(1).sample(range(pages), 16_384)  # noqa: S311 - no secret
    scattered = [GuestRange(page * PAGE_SIZE, PAGE_SIZE) for page in numbers]
    count = len(scattered)
    row(
        "pin + release scattered 4 KiB pages", best(lambda: pin_and_release(memory, scattered)), count, "page"
    )
    held = memory.pin_pages(scattered, READ_WRITE, on_unmap)
    assert len(held.views()) == 1
    again = best(lambda: pin_and_release(memory, scattered))
    row("re-pin + release scattered 4 KiB pages", again, count, "page")
    addresses = random.Random(2).sample([page * PAGE_SIZE for page in numbers], count)  # noqa: S311
    row("dma_addr of a pinned page", best(lambda: timed(lambda: translate(held, addresses))), count, "page")
    held.release()


def pin_and_release(memory: GuestMemoryMap, ranges: Sequence[GuestRange]) -> float:
    """Seconds for one pin and its release."""
    return timed(lambda: memory.pin_pages(ranges, READ_WRITE, on_unmap).release())


def translate(pin: PinnedPages, addresses: Sequence[int]) -> None:
    """Ask for the dma_addr of every address."""
    dma_addr = pin.dma_addr
    for address in addresses:
        dma_addr(address)


def invalidation(memory: GuestMemoryMap, fd: int, size: int) -> None:
    """Print what unmapping ``size`` bytes costs when 100 pages of it are pinned."""
    base = 8 * GIB

    def once() -> float:
        memory.map(base, size, READ_WRITE, os.dup(fd), 0)
        step = size // 100 & -PAGE_SIZE
        ranges = [GuestRange(base + index * step, PAGE_SIZE) for index in range(100)]
        pins = memory.pin_pages(ranges, READ_WRITE, lambda pins: pins.release())
        seconds = timed(lambda: memory.unmap(base, size))
        assert pins.revoked
        return seconds

    row(f"unmap {size // GIB} GiB with 100 pages pinned", best(once), 1, "unmap")


def copies(memory: GuestMemoryMap) -> None:
    """Print what small copies and views cost."""
    count = 20_000
    addresses = [random.Random(3).randrange(GIB - 64) & -16 for _ in range(64)]  # noqa: S311 - no secret
    payload = bytes(16)

    async def read() -> None:
        for _ in range(count // 64):
            for address in addresses:
                await memory.read(address, 16)

    async def write() -> None:
        for _ in range(count // 64):
            for address in addresses:
                await memory.write(address, payload)

    def view() -> None:
        for _ in range(count // 64):
            for address in addresses:
                memory.view(address, 16, Prot.READ)

    count -= count % 64
    row("read of 16 bytes", best(lambda: timed(lambda: run_to_completion(read()))), count, "read")
    row("write of 16 bytes", best(lambda: timed(lambda: run_to_completion(write()))), count, "write")
    row("view of 16 bytes", best(lambda: timed(view)), count, "view")


def main() -> None:
    """Measure, and print a table."""
    domain = SoftDomain()
    maps(domain)
    memory = GuestMemoryMap(FakeLog(), domain)
    fd = memfd(16 * GIB)
    memory.map(0, GIB, READ_WRITE, os.dup(fd), 0)
    pins(memory)
    invalidation(memory, fd, GIB)
    invalidation(memory, fd, 16 * GIB)
    copies(memory)
    memory.close()
    os.close(fd)


if __name__ == "__main__":
    main()
