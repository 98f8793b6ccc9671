"""DMA_MAP and DMA_UNMAP over the socket, page by page with an fd each, as a client behind an IOMMU sends them.

Compares the cost of a message while few regions are mapped with its cost while many are, and our two transports with
a blocking C server on libvfio-user, in one run.

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
FEW_IN_LIBRARY = 8
"""The older generation of libvfio-user holds 16 regions."""
SAMPLE = 2000
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
    sample = range(many, many + SAMPLE)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (
            our_server(folder) as native,
            our_server(folder, transport="libvfio-user") as library,
            c_server(folder) as c,
        ):
            ours = Prober(BlockingClient(native), many + SAMPLE)
            others = {
                "libvfio-user, ctypes": Prober(BlockingClient(library), many + SAMPLE),
                "libvfio-user, C": Prober(BlockingClient(c), many + SAMPLE),
            }
            rows = {}
            for page in range(FEW_IN_LIBRARY):
                for prober in (ours, *others.values()):
                    prober.map(page)
            rows[f"native, {FEW_IN_LIBRARY} maps"] = ours.cost(sample)
            for name, prober in others.items():
                rows[f"{name}, {FEW_IN_LIBRARY} maps"] = prober.cost(sample)
            for page in range(FEW_IN_LIBRARY, many):
                ours.map(page)
            rows[f"native, {many} maps"] = ours.cost(sample)
    first = rows[f"native, {FEW_IN_LIBRARY} maps"]
    print(f"{'us per message':30} {'DMA_MAP':>9} {'DMA_UNMAP':>10} {'of the first line':>18}")
    for name, (map_us, unmap_us) in rows.items():
        print(
            f"{name:30} {map_us:9.1f} {unmap_us:10.1f} {map_us / first[0]:10.2f} {unmap_us / first[1]:7.2f}"
        )


if __name__ == "__main__":
    main()
