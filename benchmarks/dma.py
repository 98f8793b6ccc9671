"""What the DMA core costs: pins, translation, invalidation, copies and memory, per page.

Run it as ``python -m benchmarks.dma``. Times are the best of a few rounds; read the ratios, not the microseconds.
``python -m benchmarks.dma_sgl`` compares with libvfio-user.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable, Sequence
from time import perf_counter

from devices.contract import GuestRange, PinnedPages, Prot
from devices.testing import FakeLog
from devices.work import run_to_completion
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.recording import RecordingDomain
from server.dma.domains.soft import SoftDomain
from server.dma.limits import PinLimits
from server.dma.memory import GuestMemoryMap

READ_WRITE = Prot.READ | Prot.WRITE
GIB = 1 << 30
PAGES = GIB // PAGE_SIZE
SCATTERED = 16_384
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


def let_go(pins: PinnedPages) -> None:
    """What a holder does when its memory is taken away."""
    pins.release()


def row(name: str, seconds: float, count: int, unit: str, note: str = "") -> None:
    """Print one line: time per ``unit``, and units per second."""
    each = seconds / count
    print(f"{name:<52} {each * 1e6:>10.4f} us / {unit:<10} {1 / each:>16,.0f} / s   {note}")


def scattered_ranges(count: int) -> list[GuestRange]:
    """Single pages of a gigabyte, in random order."""
    numbers = random.Random(1).sample(range(PAGES), count)  # noqa: S311 - no secret
    return [GuestRange(page * PAGE_SIZE, PAGE_SIZE) for page in numbers]


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
    row(f"map and unmap at {FEW} maps", few, 1, "pair")
    row(f"map and unmap at {MANY} maps", many, 1, "pair", f"{many / few:.2f} times that")
    os.close(fd)


def pin_and_release(memory: GuestMemoryMap, ranges: Sequence[GuestRange]) -> float:
    """Seconds for one pin and its release."""
    return timed(lambda: memory.pin_pages(ranges, READ_WRITE, let_go).release())


def one_run(memory: GuestMemoryMap) -> None:
    """Print what a gigabyte in one range costs."""
    whole = [GuestRange(0, GIB)]
    first = best(lambda: pin_and_release(memory, whole))
    row("pin and release 1 GiB as one run, first pin", first, PAGES, "page", f"{first * 1e6:.0f} us in all")
    held = memory.pin_pages(whole, READ_WRITE, let_go)
    again = best(lambda: pin_and_release(memory, whole))
    row("the same while it is pinned already", again, PAGES, "page", f"{again * 1e6:.1f} us in all")
    held.release()


def scattered(memory: GuestMemoryMap, retaining: GuestMemoryMap) -> None:
    """Print what single pages in random order cost, and what retaining them saves."""
    ranges = scattered_ranges(SCATTERED)
    first = best(lambda: pin_and_release(memory, ranges))
    row("pin and release scattered 4 KiB pages, first pin", first, SCATTERED, "page")
    retained = best(lambda: pin_and_release(retaining, ranges))
    row("the same with --dma-retain", retained, SCATTERED, "page", f"{first / retained:.1f} times faster")
    held = memory.pin_pages(ranges, READ_WRITE, let_go)
    assert len(held.views()) == 1
    again = best(lambda: pin_and_release(memory, ranges))
    row(
        "the same while they are pinned already",
        again,
        SCATTERED,
        "page",
        f"{first / again:.1f} times faster",
    )
    translation(held, [address for address, _ in ranges])
    held.release()


def translation(pins: PinnedPages, addresses: list[int]) -> None:
    """Print what the dma_addr of a page costs."""
    random.Random(2).shuffle(addresses)  # noqa: S311 - no secret

    def one_by_one() -> None:
        dma_addr = pins.dma_addr
        for address in addresses:
            dma_addr(address)

    single = best(lambda: timed(one_by_one))
    bulk = best(lambda: timed(lambda: pins.dma_addrs(addresses)))
    row("translate random pinned pages, one by one", single, len(addresses), "page")
    row(
        "translate random pinned pages, in bulk",
        bulk,
        len(addresses),
        "page",
        f"{single / bulk:.1f} times faster",
    )


def invalidation(memory: GuestMemoryMap, fd: int, size: int) -> float:
    """Seconds of unmapping ``size`` bytes when 100 pages of it are pinned."""
    base = 32 * GIB

    def once() -> float:
        memory.map(base, size, READ_WRITE, os.dup(fd), 0)
        step = size // 100 & -PAGE_SIZE
        ranges = [GuestRange(base + index * step, PAGE_SIZE) for index in range(100)]
        pins = memory.pin_pages(ranges, READ_WRITE, let_go)
        seconds = timed(lambda: memory.unmap(base, size))
        assert pins.revoked
        return seconds

    return best(once)


def invalidations(memory: GuestMemoryMap, fd: int) -> None:
    """Print what an unmap costs by the size of the region."""
    small = invalidation(memory, fd, GIB // 4)
    row("unmap 256 MiB of which 100 pages are pinned", small, 1, "unmap")
    for size in (4, 16):
        seconds = invalidation(memory, fd, size * GIB)
        row(
            f"unmap {size} GiB of which 100 pages are pinned",
            seconds,
            1,
            "unmap",
            f"{seconds / small:.2f} times that",
        )


def memory_cost(name: str, ranges: Sequence[GuestRange], fd: int) -> None:
    """Print the bytes that the cache and the handle take for each page of a pin."""
    memory = GuestMemoryMap(FakeLog(), RecordingDomain(keeps_pages=False))
    memory.map(0, 64 * GIB, READ_WRITE, os.dup(fd), 0)
    warm_up = memory.pin_pages([GuestRange(63 * GIB, PAGE_SIZE)], READ_WRITE, let_go)
    pages = sum(length for _, length in ranges) // PAGE_SIZE
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = memory.pin_pages(ranges, READ_WRITE, let_go)
    both = tracemalloc.get_traced_memory()[0] - before
    scatter = held.scatter
    handle = sum(part.nbytes for part in (scatter._first, scatter._pages))
    tracemalloc.stop()
    print(
        f"{name:<52} {both / pages:>10.2f} bytes / page, of which the cache {(both - handle) / pages:.2f}"
        f" and the handle {handle / pages:.2f}"
    )
    held.release()
    warm_up.release()
    memory.close()


def memory_costs(fd: int) -> None:
    """Print what pins take of this process's memory."""
    for count in (SCATTERED, PAGES // 2):
        memory_cost(f"memory of {count} scattered pages", scattered_ranges(count), fd)
    memory_cost("memory of 1 GiB as one run", [GuestRange(0, GIB)], fd)


def copies(memory: GuestMemoryMap) -> None:
    """Print what small copies and views cost."""
    addresses = [random.Random(3).randrange(GIB - 64) & -16 for _ in range(64)]  # noqa: S311 - no secret
    payload = bytes(16)
    count = 20_000 - 20_000 % 64

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

    row("read of 16 bytes", best(lambda: timed(lambda: run_to_completion(read()))), count, "read")
    row("write of 16 bytes", best(lambda: timed(lambda: run_to_completion(write()))), count, "write")
    row("view of 16 bytes", best(lambda: timed(view)), count, "view")


def main() -> None:
    """Measure, and print a table."""
    domain = SoftDomain()
    maps(domain)
    fd = memfd(64 * GIB)
    memory = GuestMemoryMap(FakeLog(), domain)
    retaining = GuestMemoryMap(FakeLog(), SoftDomain(), limits=PinLimits(retain=GIB))
    for one in (memory, retaining):
        one.map(0, GIB, READ_WRITE, os.dup(fd), 0)
    one_run(memory)
    scattered(memory, retaining)
    invalidations(memory, fd)
    memory_costs(fd)
    copies(memory)
    for one in (memory, retaining):
        one.close()
    os.close(fd)


if __name__ == "__main__":
    main()
