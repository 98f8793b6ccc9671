"""The noiommu domain against the kernel's own word about where pages are. Needs root, as the domain does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from devices.contract import Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domain import DmaDomain, FileRun
from server.dma.domains.noiommu import NoIommuDomain
from tests.server.dma.domains.support import frames_at
from tests.server.dma.memory_model import SETTINGS, MemoryModel
from tests.server.dma.support import Client, keep, memfd, pages


@pytest.fixture
def domain() -> Iterator[NoIommuDomain]:
    assert os.geteuid() == 0, "these tests need root: physical addresses are hidden from others"
    domain = NoIommuDomain()
    yield domain
    domain.close()


@pytest.fixture
def client(domain: NoIommuDomain) -> Iterator[Client]:
    client = Client(domain)
    yield client
    client.close()


def physical(backing: BackingFile, offset: int) -> int:
    """The physical address of a page of a file, as /proc/self/pagemap has it (pagemap.rst)."""
    return frames_at(backing.space.address + offset, 1, lambda _: backing.space.view[offset])[0] * PAGE_SIZE


def acquire(count: int) -> tuple[BackingFiles, BackingFile]:
    files = BackingFiles(lambda _: None)
    return files, files.acquire(memfd(count), 0, count * PAGE_SIZE, writable=True)


def pinned_ranges(domain: NoIommuDomain) -> object:
    return domain.stats()["pinned_ranges"]


def test_the_dma_addr_is_the_physical_address(domain: NoIommuDomain) -> None:
    files, backing = acquire(8)
    segments = domain.map_runs([FileRun(backing, 2 * PAGE_SIZE, 3 * PAGE_SIZE)], writable=True)
    frames = [dma_addr + offset for dma_addr, length in segments for offset in range(0, length, PAGE_SIZE)]
    assert frames == [physical(backing, page * PAGE_SIZE) for page in (2, 3, 4)]
    for segment in segments:
        domain.unmap(*segment)
    files.release(backing)


def test_a_run_of_over_a_gigabyte_takes_several_pins(
    domain: NoIommuDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.dma.domains.noiommu.MAX_PIN_BYTES", 2 * PAGE_SIZE)
    files, backing = acquire(5)
    segments = domain.map_runs([FileRun(backing, 0, 5 * PAGE_SIZE)], writable=True)
    assert pinned_ranges(domain) == 3
    for segment in segments:
        domain.unmap(*segment)
    assert pinned_ranges(domain) == 0
    files.release(backing)


def test_the_cpu_sees_the_memory_where_its_file_is_mapped(client: Client) -> None:
    client.map(0, 4)
    with client.memory.pin_pages(pages(3, 1), Prot.READ, keep) as pins:
        assert b"".join(pins.views()) == client.file_page(3) + client.file_page(1)


class NoIommuModel(MemoryModel):
    collide = True

    def make_domain(self) -> DmaDomain:
        return NoIommuDomain()


NoIommuModel.TestCase.settings = SETTINGS
TestNoIommu = NoIommuModel.TestCase
