"""A client's memory for tests: memfds whose every page says which page it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devices.contract import GuestMemoryError, GuestRange, PinnedPages, Prot
from devices.testing import FakeLog
from server.dma.address_space import PAGE_SIZE
from server.dma.domain import DmaDomain
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.dma.limits import PinLimits
from server.dma.memory import GuestMemoryMap

READ = Prot.READ
WRITE = Prot.WRITE
READ_WRITE = Prot.READ | Prot.WRITE


def page_of(number: int) -> bytes:
    """What page ``number`` of a test's file holds: no two pages are alike."""
    return number.to_bytes(4, "little") * (PAGE_SIZE // 4)


def memfd(pages: int, *, first: int = 0, sealable: bool = True) -> int:
    """A memfd of ``pages`` pages, the first of which says it is page ``first``."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealable else 0))
    for number in range(pages):
        os.pwrite(fd, page_of(first + number), number * PAGE_SIZE)
    return fd


def mappings() -> int:
    """How many mappings of tests' memfds this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:guest")


def pages(*numbers: int) -> list[GuestRange]:
    """A scatter list of single pages by page number."""
    return [GuestRange(number * PAGE_SIZE, PAGE_SIZE) for number in numbers]


def keep(_: PinnedPages) -> None:
    """An unmap callback that lets go of nothing."""


def let_go(pins: PinnedPages) -> None:
    """An unmap callback that does what it should."""
    pins.release()


class Client:
    """A client that shares one memfd, mapped as the test says."""

    def __init__(
        self,
        domain: DmaDomain | None = None,
        *,
        file_pages: int = 64,
        max_pinned: int | None = None,
        retain: int = 0,
        **options: int,
    ) -> None:
        self.log = FakeLog()
        self.domain = domain or SoftDomain(SMALLEST_APERTURE)
        limits = PinLimits(max_pinned, retain)
        self.memory = GuestMemoryMap(self.log, self.domain, limits=limits, **options)
        self.fd = memfd(file_pages)

    def map(self, page: int, count: int, prot: Prot = READ_WRITE, *, at: int = 0) -> None:
        """Map ``count`` pages at guest page ``page`` from page ``at`` of the memfd."""
        self.memory.map(page * PAGE_SIZE, count * PAGE_SIZE, prot, os.dup(self.fd), at * PAGE_SIZE)

    def map_unshared(self, page: int, count: int, prot: Prot = READ_WRITE) -> None:
        """Map ``count`` pages that can be reached by message only."""
        self.memory.map(page * PAGE_SIZE, count * PAGE_SIZE, prot)

    def unmap(self, page: int, count: int) -> None:
        """Unmap ``count`` pages from guest page ``page``."""
        self.memory.unmap(page * PAGE_SIZE, count * PAGE_SIZE)

    def events(self, event: str) -> list[dict[str, object]]:
        """The fields of every time that ``event`` was logged."""
        return [fields for _, name, fields in self.log.events if name == event]

    def file_page(self, number: int) -> bytes:
        """What page ``number`` of the memfd holds now."""
        return os.pread(self.fd, PAGE_SIZE, number * PAGE_SIZE)

    def close(self) -> None:
        """The client goes away."""
        self.memory.close()
        os.close(self.fd)


def stat(client: Client, name: str) -> object:
    """One of the counters of the client's memory."""
    return client.memory.stats()[name]


def errno_of_pin(client: Client, ranges: list[GuestRange], prot: Prot = READ) -> int | None:
    """How a pin fails, with nothing changed."""
    before = {**client.memory.stats()}
    with pytest.raises(GuestMemoryError) as caught:
        client.memory.pin_pages(ranges, prot, keep)
    assert client.memory.stats() == before
    return caught.value.errno
