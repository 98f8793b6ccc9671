"""The noiommu domain against the kernel's own word about where pages are. Needs root, as the domain does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.contract import GuestMemoryError, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domain import DmaDomain, FileRun
from server.dma.domains.noiommu import NoIommuDomain
from tests.server.dma.memory_model import SETTINGS, MemoryModel
from tests.server.dma.support import READ, Client, keep, memfd, pages


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
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek((backing.space.address + offset) // PAGE_SIZE * 8)
        entry = int.from_bytes(pagemap.read(8), sys.byteorder)
    assert entry >> 63
    return (entry & (1 << 55) - 1) * PAGE_SIZE


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


def test_a_run_stays_pinned_until_its_last_page_is_unmapped(domain: NoIommuDomain) -> None:
    files, backing = acquire(4)
    domain.map_runs([FileRun(backing, 0, 3 * PAGE_SIZE)], writable=True)
    for page in (1, 0):
        domain.unmap(physical(backing, page * PAGE_SIZE), PAGE_SIZE)
        assert pinned_ranges(domain) == 1
    domain.unmap(physical(backing, 2 * PAGE_SIZE), PAGE_SIZE)
    assert pinned_ranges(domain) == 0
    files.release(backing)


def test_two_mappings_of_a_page_have_one_address_and_go_one_by_one(domain: NoIommuDomain) -> None:
    files, backing = acquire(2)
    run = FileRun(backing, PAGE_SIZE, PAGE_SIZE)
    [segment] = domain.map_runs([run], writable=True)
    assert domain.map_runs([run], writable=True) == [segment]
    domain.unmap(*segment)
    assert pinned_ranges(domain) == 1
    domain.unmap(*segment)
    assert pinned_ranges(domain) == 0
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


def test_more_runs_than_can_be_pinned_leave_nothing_pinned(
    domain: NoIommuDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, backing = acquire(6)
    monkeypatch.setattr(domain._pins, "_free", [4, 3])
    with pytest.raises(OSError, match="ranges of pinned pages"):
        domain.map_runs([FileRun(backing, page * PAGE_SIZE, PAGE_SIZE) for page in (0, 2, 4)], writable=True)
    assert (pinned_ranges(domain), domain._pins.free_slots) == (0, 2)
    files.release(backing)


def test_memory_that_the_client_shares_for_reading_only_is_not_pinned(client: Client) -> None:
    fd = os.open(f"/proc/self/fd/{client.fd}", os.O_RDONLY)
    client.memory.map(0, PAGE_SIZE, READ, fd, 0)
    with pytest.raises(GuestMemoryError, match="reading only"):
        client.memory.pin_pages(pages(0), READ, keep)


def test_the_cpu_sees_the_memory_where_its_file_is_mapped(client: Client) -> None:
    client.map(0, 4)
    with client.memory.pin_pages(pages(3, 1), Prot.READ, keep) as pins:
        assert b"".join(pins.views()) == client.file_page(3) + client.file_page(1)


def test_without_root_it_says_what_is_missing() -> None:
    program = "import os; os.setgid(65534); os.setuid(65534)\nfrom server.dma.domains.noiommu import *\nNoIommuDomain()"
    root = Path(__file__).parents[4]
    python = subprocess.run(
        [sys.executable, "-c", f"import numpy, server.dma.domains.noiommu\n{program}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    last = python.stderr.splitlines()[-1]
    assert "DmaDomainUnavailable: the noiommu DMA domain needs root" in last


def test_a_kernel_without_io_uring_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.dma.domains import page_pinning  # noqa: PLC0415
    from server.dma.errors import DmaDomainUnavailable  # noqa: PLC0415

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(page_pinning, "SYS_IO_URING_SETUP", 1 << 20)  # no such call: ENOSYS
    with pytest.raises(DmaDomainUnavailable, match="io_uring_disabled"):
        NoIommuDomain()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class NoIommuModel(MemoryModel):
    collide = True

    def make_domain(self) -> DmaDomain:
        return NoIommuDomain()


NoIommuModel.TestCase.settings = SETTINGS
TestNoIommu = NoIommuModel.TestCase
