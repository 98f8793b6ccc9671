"""One client of two servers: what it maps and unmaps goes to our DMA core and to libvfio-user's alike."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from devices.contract import GuestRange, Prot
from devices.work import ReadMessage, Request, WriteMessage
from protocol import DmaWrite
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.dma.pin import Pin
from tests.server.dma.sgl_server import Piece, SglServer, pattern
from tests.server.dma.support import READ, READ_WRITE, WRITE, Client, keep

SAME_ERROR = {"EINVAL": "ENOENT", "EPERM": "EACCES", "EFAULT": "EFAULT"}
"""What pinning is refused with, and what libvfio-user says where it refuses a list for the same reason.

Ours are VFIO's: vfio_pin_pages has EINVAL for a hole (drivers/vfio/vfio_iommu_type1.c), and EPERM for a permission.
"""


class Outcomes(NamedTuple):
    """What each side answered: "ok", or the name of an errno."""

    ours: str
    library: str


OK = Outcomes("ok", "ok")


def outcome(ask: Callable[[], object]) -> str:
    """What came of ``ask``, in a word."""
    try:
        ask()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def written_by(write: Awaitable[None]) -> list[DmaWrite]:
    """The messages that a write to unshared memory sends."""
    messages: list[DmaWrite] = []

    async def take() -> None:
        await write

    _answer(take(), messages)
    return messages


def read_by(read: Awaitable[bytes]) -> bytes:
    """What a read of unshared memory gives, where the client answers with its :func:`pattern`."""
    data = b""

    async def take() -> None:
        nonlocal data
        data = await read

    _answer(take(), [])
    return data


def _answer(work: Coroutine[Request, Any, None], written: list[DmaWrite]) -> None:
    """Drive deferred work, as the client."""
    answer: bytes | None = None
    try:
        while True:
            request = work.send(answer)
            answer = None
            if isinstance(request, ReadMessage):
                answer = pattern(request.address, request.length)
            elif isinstance(request, WriteMessage):
                written.append(DmaWrite(request.address, request.data))
    except StopIteration:
        pass


class Held(NamedTuple):
    """The same range in both: a pin of ours, and the number of a list of the library's."""

    pin: Pin
    number: int
    address: int
    length: int
    prot: Prot


class BothSides:
    """The client shares one memfd of 64 pages with both; addresses and lengths are in bytes."""

    def __init__(self, program: Path, folder: Path, *, max_pinned: int | None = None) -> None:
        self.domain = SoftDomain(SMALLEST_APERTURE)
        self.client = Client(self.domain, max_pinned=max_pinned)
        self.memory = self.client.memory
        try:
            self.library = SglServer(program, folder)
        except BaseException:
            self.client.close()
            self.domain.close()
            raise

    def close(self) -> None:
        """The client leaves both."""
        self.client.close()
        self.domain.close()
        self.library.close()

    def map(
        self,
        iova: int,
        size: int,
        prot: int = READ_WRITE,
        *,
        offset: int = 0,
        fd: int | None = None,
        shared: bool = True,
    ) -> Outcomes:
        """DMA_MAP: of the memfd, unless another ``fd`` is given, or none is ``shared``."""
        given = None if not shared else self.client.fd if fd is None else fd

        def ours() -> None:
            self.memory.map(iova, size, Prot(prot), None if given is None else os.dup(given), offset)

        return Outcomes(outcome(ours), outcome(lambda: self.library.map(iova, size, prot, given, offset)))

    def unmap(self, iova: int, size: int) -> Outcomes:
        """DMA_UNMAP of a range."""
        return Outcomes(
            outcome(lambda: self.memory.unmap(iova, size)), outcome(lambda: self.library.unmap(iova, size))
        )

    def unmap_all(self) -> Outcomes:
        """DMA_UNMAP of everything."""
        return Outcomes(outcome(self.memory.unmap_all), outcome(self.library.unmap_all))

    def try_pin(self, address: int, length: int, prot: int = READ_WRITE) -> Outcomes:
        """Whether a device gets a range; it is given back at once."""

        def ours() -> None:
            self.memory.pin_pages([GuestRange(address, length)], Prot(prot), keep).release()

        def library() -> None:
            self.library.put(self.library.get(address, length, prot))

        return Outcomes(outcome(ours), outcome(library))

    def pin(self, address: int, length: int, prot: Prot = READ_WRITE) -> Held:
        """A range that both give."""
        pin = self.memory.pin_pages([GuestRange(address, length)], prot, keep)
        return Held(pin, self.library.get(address, length, prot), address, length, prot)

    def release(self, held: Held) -> None:
        """Give it back to both."""
        held.pin.release()
        self.library.put(held.number)

    def log_dirty_pages(self) -> None:
        """Let both log what devices write from now on."""
        self.memory.dirty.start()
        self.library.log_dirty_pages()

    def dirty_pages(self, iova: int, size: int) -> tuple[int, int]:
        """The dirty pages of a region, a bit for each from bit 0 on, ours and the library's, which unmaps it."""
        ours = self.memory.dirty_bitmap(iova, size, PAGE_SIZE)
        library = self.library.unmap_and_report(iova, size, PAGE_SIZE)
        return int.from_bytes(ours, "little"), int.from_bytes(library, "little")

    def check_same_memory(self, held: Held) -> list[Piece]:
        """Assert that both show the same bytes, page by page, cut at the same places; returns the library's cut."""
        pieces = self.library.show(held.number)
        shown = b"".join(piece.data for piece in pieces)
        assert len(shown) == held.length
        assert b"".join(held.pin.views()) == shown
        self._check_dma_addrs(held, shown)
        self._check_cuts(held.address, pieces)
        return pieces

    def check_same_regions(self) -> None:
        """Assert that both have the same regions, with the same permissions, shared or not."""
        regions = self.library.regions
        stats = self.memory.stats()
        assert stats["regions"] == len(regions)
        assert stats["mapped_bytes"] == sum(region.size for region in regions)
        for iova, size, prot, shared in regions:
            allowed = READ if prot & READ else WRITE
            assert (self.memory.view(iova, size, allowed) is not None) == shared
            denied = READ_WRITE & ~Prot(prot)
            assert not denied or outcome(partial(self.memory.view, iova, 1, denied)) == "EPERM"

    def _check_dma_addrs(self, held: Held, shown: bytes) -> None:
        """At the dma_addr of each page a device's engine finds that page."""
        end = held.address + held.length
        starts = [held.address, *range(held.address // PAGE_SIZE * PAGE_SIZE + PAGE_SIZE, end, PAGE_SIZE)]
        for address, dma_addr in zip(starts, held.pin.dma_addrs(starts), strict=True):
            size = min(PAGE_SIZE - address % PAGE_SIZE, end - address)
            expected = shown[address - held.address :][:size]
            assert self.domain.memory[dma_addr : dma_addr + size] == expected

    def _check_cuts(self, address: int, pieces: list[Piece]) -> None:
        """What is one entry there is one view here, and is none with the first byte of the next."""
        for index, (length, data) in enumerate(pieces):
            view = self.memory.view(address, length, READ)
            assert view is not None
            assert bytes(view) == data
            assert index == len(pieces) - 1 or self.memory.view(address, length + 1, READ) is None
            address += length
