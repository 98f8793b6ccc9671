"""The mappings of the type1 domain, page by page, over a model of the kernel's rules."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from devices.contract import GuestMemoryError
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domain import DmaSegment, OutOfRuns
from server.dma.domains.type1 import Type1Domain
from server.dma.domains.vfio import MapFlags
from server.dma.errors import DmaDomainUnavailable, DmaError
from tests.server.dma.domains.support import run
from tests.server.dma.domains.type1_kernel import MSI_WINDOW, READ, WRITE, Type1Kernel, container
from tests.server.dma.support import READ_WRITE, Client, keep, memfd, page_of, pages

PAGES = 32


@pytest.fixture
def kernel() -> Type1Kernel:
    return Type1Kernel()


@pytest.fixture
def domain(kernel: Type1Kernel) -> Type1Domain:
    return Type1Domain(container(kernel))


@pytest.fixture
def backing() -> Iterator[BackingFile]:
    files = BackingFiles(lambda _: None)
    one = files.acquire(memfd(PAGES), 0, PAGES * PAGE_SIZE, writable=True)
    yield one
    files.release(one)


def test_a_scatter_list_is_one_segment_of_as_many_mappings(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 9), run(backing, 2, 3), run(backing, 5)], writable=True)
    assert (segment.length, len(kernel.mappings)) == (5 * PAGE_SIZE, 3)
    for index, page in enumerate((9, 2, 3, 4, 5)):
        assert kernel.load(segment.dma_addr + index * PAGE_SIZE) == page_of(page)
    domain.unmap(*segment)
    assert not kernel.mappings


def test_a_part_of_a_mapping_lingers_until_the_rest_is_unmapped(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 4, 4)], writable=True)
    domain.unmap(segment.dma_addr + PAGE_SIZE, 2 * PAGE_SIZE)
    assert (domain.stats()["lingering_pages"], len(kernel.mappings)) == (2, 1)
    domain.unmap(segment.dma_addr, PAGE_SIZE)
    domain.unmap(segment.dma_addr + 3 * PAGE_SIZE, PAGE_SIZE)
    assert (domain.stats()["lingering_pages"], len(kernel.mappings)) == (0, 0)


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize(("may_write", "flags"), [(True, READ | WRITE), (False, READ)])
def test_a_mapping_permits_what_the_client_does_whatever_is_wanted_now(
    domain: Type1Domain,
    kernel: Type1Kernel,
    backing: BackingFile,
    writable: bool,
    may_write: bool,
    flags: int,
) -> None:
    [segment] = domain.map_runs([run(backing, 5, may_write=may_write)], writable=writable and may_write)
    assert kernel.at(segment.dma_addr).flags == flags
    domain.unmap(*segment)


def test_addresses_stay_within_what_the_iommu_and_the_device_can_use(kernel: Type1Kernel) -> None:
    kernel.ranges = ((0, MSI_WINDOW[0] - 1), (MSI_WINDOW[1] + 1, (1 << 64) - 1))
    files = BackingFiles(lambda _: None)
    backing = files.acquire(memfd(1), 0, PAGE_SIZE, writable=True)
    for bits, first_page in ((64, 1), (14, 1), (13, 1)):
        domain = Type1Domain(container(kernel), bits)
        [segment] = domain.map_runs([run(backing, 0)], writable=True)
        assert segment.dma_addr == first_page * PAGE_SIZE
        if bits < 15:
            with pytest.raises(DmaError, match="IO virtual"):
                domain.map_runs([run(backing, 0)] * (1 << bits - PAGE_SHIFT), writable=True)
        domain.unmap(*segment)
    files.release(backing)


def test_addresses_of_which_page_numbers_need_more_than_32_bits_are_not_used() -> None:
    with pytest.raises(DmaDomainUnavailable, match="no addresses of 64 bits"):
        Type1Domain(container(Type1Kernel(ranges=((1 << 44, (1 << 48) - 1),))))


@pytest.mark.parametrize("bits", [0, 12])
def test_a_device_that_reaches_page_0_alone_has_no_addresses(kernel: Type1Kernel, bits: int) -> None:
    with pytest.raises(DmaDomainUnavailable, match="no addresses"):
        Type1Domain(container(kernel), bits)


def test_an_iommu_of_larger_pages_cannot_be_used(kernel: Type1Kernel) -> None:
    kernel.page_sizes = 0x1_0000
    with pytest.raises(DmaDomainUnavailable, match="65536 bytes at least"):
        Type1Domain(container(kernel))


def test_a_run_that_does_not_fit_below_the_interrupt_window_goes_above_it(
    kernel: Type1Kernel, backing: BackingFile
) -> None:
    kernel.ranges = ((0, 2 * PAGE_SIZE - 1), (MSI_WINDOW[1] + 1, MSI_WINDOW[1] + 8 * PAGE_SIZE))
    domain = Type1Domain(container(kernel))
    low = domain.map_runs([run(backing, 0)], writable=True)
    high = domain.map_runs([run(backing, 2, 2)], writable=True)
    assert low == [DmaSegment(PAGE_SIZE, PAGE_SIZE)]
    assert high == [DmaSegment(MSI_WINDOW[1] + 1, 2 * PAGE_SIZE)]
    for segment in low + high:
        domain.unmap(*segment)


def test_a_lingering_page_is_mapped_again_where_it_was(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 4, 6)], writable=True)
    domain.unmap(segment.dma_addr + PAGE_SIZE, 3 * PAGE_SIZE)
    # Pages 3 and 4 do not linger: one is not mapped, the other is in use at the address of another mapping.
    [fresh, reused] = domain.map_runs([run(backing, 3, 4)], writable=False)
    assert kernel.load(fresh.dma_addr, 2 * PAGE_SIZE) == page_of(3) + page_of(4)
    assert reused == DmaSegment(segment.dma_addr + PAGE_SIZE, 2 * PAGE_SIZE)
    assert domain.stats()["lingering_pages"] == 1
    for one in (fresh, reused):
        domain.unmap(*one)
    assert domain.stats()["lingering_pages"] == 3


def test_a_page_that_lingers_and_is_named_twice_is_reused_once(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 4, 2)], writable=True)
    domain.unmap(segment.dma_addr, PAGE_SIZE)
    again = domain.map_runs([run(backing, 4), run(backing, 4)], writable=True)
    assert again[0] == DmaSegment(segment.dma_addr, PAGE_SIZE)
    assert again[1].dma_addr != segment.dma_addr
    assert kernel.load(again[1].dma_addr) == page_of(4)
    for one in [*again, DmaSegment(segment.dma_addr + PAGE_SIZE, PAGE_SIZE)]:
        domain.unmap(*one)
    assert not kernel.mappings


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_lingering_page_of_other_permissions_is_not_reused(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile, before: bool, after: bool
) -> None:
    [segment] = domain.map_runs([run(backing, 4, 2, may_write=before)], writable=False)
    domain.unmap(segment.dma_addr, PAGE_SIZE)
    [other] = domain.map_runs([run(backing, 4, may_write=after)], writable=False)
    assert other.dma_addr != segment.dma_addr
    assert kernel.at(other.dma_addr).flags == (READ | WRITE if after else READ)
    domain.unmap(*other)
    domain.unmap(segment.dma_addr + PAGE_SIZE, PAGE_SIZE)
    assert not kernel.mappings


def test_one_unmap_takes_parts_of_neighbouring_mappings(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 0, 2), run(backing, 10), run(backing, 20, 2)], writable=True)
    domain.unmap(segment.dma_addr + PAGE_SIZE, 3 * PAGE_SIZE)
    assert kernel.locked == 4
    assert domain.stats()["lingering_pages"] == 2
    domain.unmap(segment.dma_addr, PAGE_SIZE)
    domain.unmap(segment.dma_addr + 4 * PAGE_SIZE, PAGE_SIZE)
    assert not kernel.mappings


@pytest.mark.parametrize("limit", ["entries", "memory"])
def test_a_map_that_fails_half_way_changes_nothing(backing: BackingFile, limit: str) -> None:
    kernel = Type1Kernel(entries=4 if limit == "entries" else 100)
    kernel.lockable = 100 if limit == "entries" else 7
    domain = Type1Domain(container(kernel))
    [held] = domain.map_runs([run(backing, 0, 4)], writable=True)
    domain.unmap(held.dma_addr + PAGE_SIZE, PAGE_SIZE)
    before, stats = dict(kernel.mappings), domain.stats()
    with pytest.raises(
        OutOfRuns if limit == "entries" else DmaError, match=r"dma_entry_limit|MEMLOCK"
    ) as caught:
        domain.map_runs([run(backing, 0, 4), *(run(backing, page) for page in (10, 12, 14))], writable=True)
    assert caught.value.errno == errno.ENOMEM
    assert (kernel.mappings, domain.stats()) == (before, stats)
    assert domain.map_runs([run(backing, 1)], writable=True) == [
        DmaSegment(held.dma_addr + PAGE_SIZE, PAGE_SIZE)
    ]
    assert domain.map_runs([run(backing, 20)], writable=True) == [
        DmaSegment(held.dma_addr + 4 * PAGE_SIZE, PAGE_SIZE)
    ]


def test_memory_that_the_kernel_cannot_pin_is_its_error(
    domain: Type1Domain, backing: BackingFile, kernel: Type1Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr(domain._container, "map_dma", refuse)
    with pytest.raises(OSError, match="Bad address") as caught:
        domain.map_runs([run(backing, 0)], writable=True)
    assert caught.value.errno == errno.EFAULT


def test_what_cannot_be_unmapped_now_stays_out_of_use_until_it_can(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [first] = domain.map_runs([run(backing, 2, 2)], writable=True)
    domain.unmap(first.dma_addr, PAGE_SIZE)
    kernel.stubborn = True
    domain.unmap(first.dma_addr + PAGE_SIZE, PAGE_SIZE)
    [second] = domain.map_runs([run(backing, 2, 2)], writable=True)
    assert second.dma_addr >= first.dma_addr + first.length
    assert domain.stats()["iommu_mappings"] == 1
    kernel.stubborn = False
    domain.unmap(*second)
    assert not kernel.mappings
    assert domain.map_runs([run(backing, 7)], writable=True)[0].dma_addr == first.dma_addr


def test_what_could_not_be_unmapped_is_tried_once_more_when_the_domain_is_closed(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    [segment] = domain.map_runs([run(backing, 2)], writable=True)
    kernel.stubborn = True
    domain.unmap(*segment)
    domain.close()
    assert kernel.mappings
    kernel.stubborn = False
    domain.close()
    assert not kernel.mappings


def test_addresses_that_somebody_else_has_mapped_are_passed_over(
    domain: Type1Domain, kernel: Type1Kernel, backing: BackingFile
) -> None:
    owner = container(kernel)
    for taken in (2, 5):
        owner.map_dma(taken * PAGE_SIZE, backing.space.address, PAGE_SIZE, MapFlags.READ)
    wanted = [run(backing, page) for page in range(0, 8, 2)]
    for _ in range(2):
        [segment] = domain.map_runs(wanted, writable=True)
        assert segment.length == 4 * PAGE_SIZE
        found = [kernel.load(segment.dma_addr + at * PAGE_SIZE) for at in range(4)]
        assert found == [page_of(0), page_of(2), page_of(4), page_of(6)]
        domain.unmap(*segment)
    assert len(kernel.mappings) == 2


def test_a_domain_that_is_made_anew_passes_over_what_the_last_one_could_not_unmap(
    kernel: Type1Kernel, backing: BackingFile
) -> None:
    last = Type1Domain(container(kernel))
    [stuck] = last.map_runs([run(backing, 2)], writable=True)
    kernel.stubborn = True
    last.unmap(*stuck)
    last.close()
    [segment] = Type1Domain(container(kernel)).map_runs([run(backing, 3)], writable=True)
    assert segment.dma_addr != stuck.dma_addr


def test_a_pin_of_more_runs_than_the_kernel_maps_is_out_of_memory() -> None:
    kernel = Type1Kernel(entries=3)
    client = Client(Type1Domain(container(kernel)))
    client.map(0, 64)
    held = client.memory.pin_pages(pages(0, 4), READ_WRITE, keep)
    with pytest.raises(GuestMemoryError, match="dma_entry_limit") as caught:
        client.memory.pin_pages(pages(10, 12), READ_WRITE, keep)
    assert caught.value.errno == errno.ENOMEM
    assert len(kernel.mappings) == 2
    held.release()
    client.close()
