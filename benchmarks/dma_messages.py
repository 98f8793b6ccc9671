"""DMA_MAP and DMA_UNMAP over the socket, page by page with an fd each, as a client behind an IOMMU sends them.

Compares the cost of a message while few regions are mapped with its cost while many are, for our server and for a
blocking C server on libvfio-user, in one run.

usage: python -m benchmarks.dma_messages [--maps N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.servers import BlockingClient, c_server, our_server
from protocol import Command, DmaMap, DmaMapFlags, DmaUnmap

PAGE = 4096
FEW = 100
FEW_IN_C = 8
"""The older generation of libvfio-user holds 16 regions."""
STRIDE = 2 * PAGE
"""Between the starts of two maps, so that no two of them are neighbours."""
READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE


class Prober:
    """Maps and unmaps pages of one memfd through a client."""

    def __init__(self, client: BlockingClient, pages: int) -> None:
        self.client = client
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, pages * PAGE)

    def map(self, page: int) -> float:
        """Map a page; returns microseconds."""
        payload = DmaMap(page * STRIDE, PAGE, READ_WRITE, page * PAGE).pack()
        return self._timed(Command.DMA_MAP, payload, (self.fd,))

    def unmap(self, page: int) -> float:
        """Unmap a page; returns microseconds."""
        return self._timed(Command.DMA_UNMAP, DmaUnmap(page * STRIDE, PAGE).pack(), ())

    def cost(self, pages: range) -> tuple[float, float]:
        """Map and unmap each of ``pages`` in turn; returns the median microseconds of each."""
        maps, unmaps = zip(*((self.map(page), self.unmap(page)) for page in pages), strict=True)
        return statistics.median(maps), statistics.median(unmaps)

    def _timed(self, command: Command, payload: bytes, fds: tuple[int, ...]) -> float:
        began = time.perf_counter_ns()
        self.client.call(command, payload, fds)
        return (time.perf_counter_ns() - began) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--maps", type=int, default=60_000, help="regions that stay mapped (default: %(default)s)"
    )
    many = parser.parse_args().maps
    sample = range(many, many + 2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with our_server(folder) as our_path, c_server(folder) as c_path:
            ours = Prober(BlockingClient(our_path), many + 2000)
            c = Prober(BlockingClient(c_path), many + 2000)
            for page in range(FEW):
                ours.map(page)
            for page in range(FEW_IN_C):
                c.map(page)
            few, c_few = ours.cost(sample), c.cost(sample)
            for page in range(FEW, many):
                ours.map(page)
            loaded = ours.cost(sample)
    print(f"{'us per message':24} {'DMA_MAP':>9} {'DMA_UNMAP':>10}")
    print(f"{f'ours, {FEW} maps':24} {few[0]:9.1f} {few[1]:10.1f}")
    print(f"{f'ours, {many} maps':24} {loaded[0]:9.1f} {loaded[1]:10.1f}")
    print(f"{'ratio':24} {loaded[0] / few[0]:9.2f} {loaded[1] / few[1]:10.2f}")
    print(f"{f'C server, {FEW_IN_C} maps':24} {c_few[0]:9.1f} {c_few[1]:10.1f}")


if __name__ == "__main__":
    main()
