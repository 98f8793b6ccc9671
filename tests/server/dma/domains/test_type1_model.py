"""The type1 domain under random use, over a model of the kernel's rules."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from devices.contract import Prot
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.backing import BackingFiles
from server.dma.domain import DmaDomain
from server.dma.domains.type1 import Type1Domain
from server.dma.errors import DmaError
from tests.server.dma.domains.support import run
from tests.server.dma.domains.type1_kernel import READ, WRITE, Mapping, Type1Kernel, container
from tests.server.dma.memory_model import SETTINGS, MemoryModel
from tests.server.dma.support import memfd, page_of

PAGES = 32


class Pages(RuleBasedStateMachine):
    """The domain over the model of the kernel against a dictionary of the pages that are mapped now, by dma_addr."""

    def __init__(self) -> None:
        super().__init__()
        self.files = BackingFiles(lambda _: None)
        self.backing = self.files.acquire(memfd(PAGES), 0, PAGES * PAGE_SIZE, writable=True)
        self.kernel = Type1Kernel(
            ranges=((0, 40 * PAGE_SIZE - 1), (50 * PAGE_SIZE, 120 * PAGE_SIZE - 1)), entries=24
        )
        self.kernel.lockable = 90
        self.domain = Type1Domain(container(self.kernel))
        self.mapped: dict[int, tuple[int, bool]] = {}
        self.known: dict[tuple[int, bool], int] = {}
        """Where each page of the file lingers: where it did so first, if in several places."""

    def teardown(self) -> None:
        self.kernel.stubborn = False
        for dma_addr in list(self.mapped):
            self.domain.unmap(dma_addr, PAGE_SIZE)
        self.domain.close()
        assert not self.kernel.mappings
        # All addresses are free again, and in one piece each side of the gap.
        self.kernel.entries = self.kernel.lockable = 200
        for count in (39, 70):
            whole = [run(self.backing, page % PAGES) for page in range(count)]
            assert len(self.domain.map_runs(whole, writable=False)) == 1
        self.files.release(self.backing)

    @rule(
        spans=st.lists(
            st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=4
        ),
    )
    def map(self, spans: list[tuple[int, int, int]]) -> None:
        runs = [(start, min(count, PAGES - start), writes > 0) for start, count, writes in spans]
        expected = [
            (page, may_write) for start, count, may_write in runs for page in range(start, start + count)
        ]
        before, known = dict(self.kernel.mappings), dict(self.known)
        asked = [run(self.backing, start, count, may_write=may_write) for start, count, may_write in runs]
        stuck = len(before) > len(self.in_use())
        try:
            segments = self.domain.map_runs(asked, writable=False)
        except DmaError:
            # What could not be unmapped before may be gone; what was mapped now may be stuck.
            assert stuck or self.kernel.stubborn or self.kernel.mappings == before
            return
        found = [page for start, length in segments for page in range(start, start + length, PAGE_SIZE)]
        assert len(found) == len(expected)
        assert not self.mapped.keys() & set(found)
        self.mapped |= dict(zip(found, expected, strict=True))
        for page in set(expected) & known.keys():
            assert self.mapped[self.known.pop(page)] == page

    @precondition(lambda self: self.mapped)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.mapped)))
        longest = 1
        while start + longest * PAGE_SIZE in self.mapped:
            longest += 1
        count = data.draw(st.integers(1, longest))
        self.domain.unmap(start, count * PAGE_SIZE)
        gone = range(start, start + count * PAGE_SIZE, PAGE_SIZE)
        for dma_addr in gone:
            del self.mapped[dma_addr]
        lingering = self.lingering()
        self.known = {page: at for page, at in self.known.items() if at in lingering}
        for dma_addr in gone:
            if dma_addr in lingering:
                self.known.setdefault(lingering[dma_addr], dma_addr)

    @rule(stubborn=st.booleans())
    def have_the_kernel_refuse_to_unmap(self, stubborn: bool) -> None:
        self.kernel.stubborn = stubborn

    @invariant()
    def the_device_reaches_every_mapped_page_with_the_permissions_of_the_client(self) -> None:
        for dma_addr, (page, may_write) in self.mapped.items():
            assert self.kernel.load(dma_addr) == page_of(page)
            assert self.kernel.at(dma_addr).flags == (READ | WRITE if may_write else READ)

    @invariant()
    def what_is_mapped_besides_lingers_in_a_mapping_of_which_a_page_is_in_use(self) -> None:
        stats = self.domain.stats()
        assert stats["lingering_pages"] == len(self.lingering())
        assert stats["iommu_mappings"] == len(self.in_use())

    @precondition(lambda self: not self.kernel.stubborn)
    @rule()
    def retry(self) -> None:
        """Nothing else is left in the IOMMU once the kernel unmaps again."""
        self.domain.close()
        assert len(self.kernel.mappings) == len(self.in_use())

    def in_use(self) -> list[Mapping]:
        """The mappings of which a page is mapped."""
        return [one for one in self.kernel.mappings.values() if self.mapped.keys() & set(self.pages(one))]

    def lingering(self) -> dict[int, tuple[int, bool]]:
        """The page of the file, and its permission, at each dma_addr that a device reaches besides."""
        found: dict[int, tuple[int, bool]] = {}
        for one in self.in_use():
            first = one.vaddr - self.backing.space.address - one.iova
            for at in self.pages(one):
                if at not in self.mapped:
                    found[at] = (first + at >> PAGE_SHIFT, bool(one.flags & WRITE))
        return found

    @staticmethod
    def pages(one: Mapping) -> range:
        return range(one.iova, one.iova + one.size, PAGE_SIZE)


class Type1Model(MemoryModel):
    """The whole core, over the model of the kernel."""

    domain: Type1Domain

    def make_domain(self) -> DmaDomain:
        self.kernel = Type1Kernel()
        return Type1Domain(container(self.kernel))

    def teardown(self) -> None:
        super().teardown()
        assert not self.kernel.mappings

    @invariant()
    def the_device_reaches_the_guests_page_at_its_dma_addr_as_the_client_permits(self) -> None:
        for held in self.held:
            for number in held.pages:
                at = held.pin.dma_addr(number * PAGE_SIZE)
                assert self.kernel.load(at) == self.bytes_at(number * PAGE_SIZE, PAGE_SIZE)
                may_write = Prot.WRITE in self.mapped[number].prot
                assert self.kernel.at(at).flags == (READ | WRITE if may_write else READ)

    @invariant()
    def every_mapped_page_is_in_the_iommu_once_and_besides_only_what_lingers(self) -> None:
        lingering = self.domain.stats()["lingering_pages"]
        assert isinstance(lingering, int)
        assert self.kernel.locked == len(self.pinned()) + len(self.retained) + lingering


class RetainingType1Model(Type1Model):
    retain = 5


for model in (Pages, Type1Model, RetainingType1Model):
    model.TestCase.settings = SETTINGS

TestPages = Pages.TestCase
TestType1 = Type1Model.TestCase
TestRetainingType1 = RetainingType1Model.TestCase
