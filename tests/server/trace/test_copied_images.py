"""Images that the GPU copies out of observed memory: what it leaves out has not changed, whoever looked meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from devices.contract import GuestRange, Look, Prot
from devices.testing import FakeLog
from devices.virtio_gpu.backing import Backing
from devices.work import run_to_completion
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.trace.contents import Copies
from server.trace.observed_memory import ObservedMemory

PAGE = 4096


class Observer:
    """Only what Backing needs."""

    def __init__(self) -> None:
        self.copies = Copies()

    def read(self, address: int, data: bytes | memoryview) -> None:
        """Nothing else records here."""

    def wrote(self, address: int, data: bytes | memoryview) -> None:
        """Nothing writes here."""

    def looked(
        self, pins: object, ranges: Sequence[tuple[int, int]], offset: int, views: Sequence[memoryview]
    ) -> Look:
        news = self.copies.look(pins, ranges, offset, views)
        return Look(views, news.version, news.spans)


@dataclass(frozen=True)
class Rows:
    """What is copied, and to where in the image."""

    offset: int
    place: int
    row: int
    rows: int


STRIDE = 256
IMAGE = 64 * STRIDE
rows = st.builds(
    lambda at, place, row, rows: Rows(
        at, place, row, min(rows, (IMAGE - max(at, place) - row) // STRIDE + 1)
    ),
    st.integers(0, IMAGE - STRIDE) | st.integers(0, 63).map(STRIDE.__mul__),
    st.integers(0, IMAGE - STRIDE),
    st.integers(1, STRIDE) | st.just(STRIDE),
    st.integers(1, 64),
)
what = st.sampled_from(["copy", "copy", "copy", "copy elsewhere", "observe", "remap", "new session"])


class Client:
    """Shared memory of 8 pages at address 0, and a backing in it that outlives sessions."""

    def __init__(self, ranges: Sequence[GuestRange]) -> None:
        self.fd = -1
        self.memory = self.attach()
        self.backing = Backing(ranges, lambda: self.memory)
        self.ranges = ranges

    def attach(self) -> ObservedMemory:
        memory = ObservedMemory(Observer(), FakeLog(), SoftDomain(SMALLEST_APERTURE))
        self.map(memory)
        return memory

    def map(self, memory: ObservedMemory) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.pwrite(self.fd, os.urandom(8 * PAGE), 0)
        memory.map(0, 8 * PAGE, Prot.READ | Prot.WRITE, os.dup(self.fd))

    def unmap(self) -> None:
        os.close(self.fd)
        self.memory.unmap_all()

    def linear(self) -> bytes:
        return b"".join(os.pread(self.fd, size, address) for address, size in self.ranges)


@given(
    st.sampled_from(
        [
            [GuestRange(0, 4 * PAGE)],
            [GuestRange(4 * PAGE, PAGE), GuestRange(0, PAGE), GuestRange(6 * PAGE, 2 * PAGE)],
            [GuestRange(100, 3 * PAGE), GuestRange(3 * PAGE + 1000, PAGE)],
        ]
    ),
    st.lists(rows, min_size=1, max_size=3),
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.integers(0, 8 * PAGE - 100), st.binary(min_size=1, max_size=9)), max_size=3
            ),
            what,
            st.integers(0, 2),
        ),
        max_size=12,
    ),
)
@example(
    [GuestRange(0, 4 * PAGE)],
    [Rows(0, 0, STRIDE, 64), Rows(0, 0, STRIDE, 32)],
    [([], "copy", 0), ([(5, b"changed")], "observe", 1)],
)
@example(
    [GuestRange(0, 4 * PAGE)],
    [Rows(0, 0, STRIDE, 64)],
    [([], "copy", 0), ([(5, b"first")], "observe", 0), ([(3 * PAGE, b"second")], "copy", 0)],
)
@example([GuestRange(0, 4 * PAGE)], [Rows(0, 0, STRIDE, 64)], [([], "copy", 0), ([], "remap", 0)])
@example([GuestRange(0, 4 * PAGE)], [Rows(0, 0, STRIDE, 64)], [([], "copy", 0), ([], "new session", 0)])
def test_an_image_that_is_copied_out_of_observed_memory_is_what_the_guest_shows(
    ranges: list[GuestRange], parts: list[Rows], steps: list[tuple[list[tuple[int, bytes]], str, int]]
) -> None:
    client = Client(ranges)
    image, expected = bytearray(IMAGE), bytearray(IMAGE)
    try:
        for changed, kind, index in [*steps, ([], "copy", 0)]:
            for at, value in changed:
                os.pwrite(client.fd, value, at)
            part = parts[index % len(parts)]
            span = STRIDE * (part.rows - 1) + part.row
            if kind == "remap":
                client.unmap()
                client.map(client.memory)
            elif kind == "new session":
                client.unmap()
                client.memory.close()
                client.memory = client.attach()
            elif kind == "observe":
                client.backing.observe(part.offset, span)
            else:
                elsewhere = kind == "copy elsewhere"
                target = bytearray(span) if elsewhere else image
                place = None if elsewhere else part.place
                run_to_completion(
                    client.backing.copy_rows(
                        part.offset, STRIDE, memoryview(target)[place:], STRIDE, part.row, part.rows, place
                    )
                )
                guest = client.linear()
                for number in range(0 if elsewhere else part.rows):
                    at, to = part.offset + number * STRIDE, part.place + number * STRIDE
                    expected[to : to + part.row] = guest[at : at + part.row]
                assert image == expected
    finally:
        client.backing.release()
        client.unmap()
        client.memory.close()
