"""The whole core against the plainest model there is: dictionaries of pages."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devices.contract import GuestMemoryError, GuestRange, PinnedPages, Prot
from devices.work import run_to_completion
from server.dma.address_space import PAGE_SIZE
from server.dma.domain import DmaDomain
from server.dma.errors import DmaError
from server.dma.pin import Pin
from server.dma.recording import RecordingDomain
from server.dma.soft import SMALLEST_APERTURE, SoftDomain
from tests.server.dma.support import READ, READ_WRITE, WRITE, Client, keep, let_go, page_of

GUEST_PAGES = 24
FILE_PAGES = 32
LIMIT = 12

PAGE = st.integers(0, GUEST_PAGES - 1)
COUNT = st.integers(1, 6)
PROT = st.sampled_from([READ_WRITE, READ, WRITE])
LIKELY = st.integers(0, 7).map(bool)
ANYWHERE = st.builds(GuestRange, st.integers(0, GUEST_PAGES * PAGE_SIZE), st.integers(1, 3 * PAGE_SIZE))


def fail(_: PinnedPages) -> None:
    raise RuntimeError("a holder with a fault")


@dataclass(frozen=True)
class Page:
    """A guest page as the model knows it."""

    region: int
    first: int
    count: int
    file_page: int
    prot: Prot
    shared: bool


@dataclass
class Held:
    pin: Pin
    ranges: list[GuestRange]
    pages: Counter[int]
    prot: Prot


class MemoryModel(RuleBasedStateMachine):
    """Random requests of a client and of holders; the subclasses choose the domain."""

    def __init__(self, domain: DmaDomain) -> None:
        super().__init__()
        self.client = Client(domain, file_pages=FILE_PAGES, max_pinned=LIMIT * PAGE_SIZE)
        self.memory = self.client.memory
        self.mapped: dict[int, Page] = {}
        self.content = {number: page_of(number) for number in range(FILE_PAGES)}
        self.held: list[Held] = []
        self.regions = 0

    @initialize(prot=PROT)
    def start_with_some_memory(self, prot: Prot) -> None:
        self.map(2, 8, 0, READ_WRITE, 1)
        self.map(10, 6, 10, READ_WRITE, 1)
        self.map(16, 4, 4, prot, 1)

    def teardown(self) -> None:
        self.client.close()
        assert all(held.pin.revoked for held in self.held)
        assert isinstance(self.client.domain, SoftDomain) or self.recorded().pages == {}

    def recorded(self) -> RecordingDomain:
        assert isinstance(self.client.domain, RecordingDomain)
        return self.client.domain

    @rule(page=PAGE, count=COUNT, at=st.integers(0, FILE_PAGES - 6), prot=PROT, shared=st.integers(0, 5))
    def map(self, page: int, count: int, at: int, prot: Prot, shared: int) -> None:
        def ask() -> None:
            if shared:
                self.client.map(page, count, prot, at=at)
            else:
                self.client.map_unshared(page, count, prot)

        if any(number in self.mapped for number in range(page, page + count)):
            assert self.dma_errno(ask) == errno.EEXIST
            return
        ask()
        self.regions += 1
        for index in range(count):
            self.mapped[page + index] = Page(self.regions, page, count, at + index, prot, bool(shared))

    @rule(page=PAGE, count=st.integers(1, 12))
    def unmap(self, page: int, count: int) -> None:
        wanted = range(page, page + count)
        touched = [self.mapped[number] for number in wanted if number in self.mapped]
        if not touched:
            assert self.dma_errno(lambda: self.client.unmap(page, count)) == errno.ENOENT
        elif any(one.first < page or one.first + one.count > page + count for one in touched):
            assert self.dma_errno(lambda: self.client.unmap(page, count)) == errno.EINVAL
        else:
            self.client.unmap(page, count)
            self.take_away(set(wanted))

    @rule()
    def unmap_all(self) -> None:
        self.memory.unmap_all()
        self.take_away(set(self.mapped))

    @precondition(lambda self: self.mapped)
    @rule(data=st.data(), prot=PROT, on_unmap=st.sampled_from([keep, let_go, fail]))
    def pin(self, data: st.DataObject, prot: Prot, on_unmap: Callable[[PinnedPages], None]) -> None:
        ranges = data.draw(st.lists(self.inside() if data.draw(LIKELY) else ANYWHERE, min_size=1, max_size=4))
        pages = Counter(
            number
            for address, length in ranges
            for number in range(address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE))
        )
        expected = self.error_of_pin(set(pages), prot)
        if expected:
            with pytest.raises(GuestMemoryError) as caught:
                self.memory.pin_pages(ranges, prot, on_unmap)
            assert caught.value.errno in expected
        else:
            self.held.append(Held(self.memory.pin_pages(ranges, prot, on_unmap), ranges, pages, prot))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        held.pin.release()

    @rule(
        address=st.integers(2 * PAGE_SIZE, GUEST_PAGES * PAGE_SIZE),
        data=st.binary(min_size=1, max_size=2 * PAGE_SIZE),
    )
    def write(self, address: int, data: bytes) -> None:
        pages = range(address // PAGE_SIZE, -(-(address + len(data)) // PAGE_SIZE))
        expected = self.error_of(pages, WRITE)
        if not expected and not all(self.mapped[number].shared for number in pages):
            return
        work = self.memory.write(address, data)
        if expected:
            with pytest.raises(GuestMemoryError) as caught:
                run_to_completion(work)
            assert caught.value.errno in expected
            return
        run_to_completion(work)
        for index, byte in enumerate(data):
            number, offset = divmod(address + index, PAGE_SIZE)
            page = bytearray(self.content[self.mapped[number].file_page])
            page[offset] = byte
            self.content[self.mapped[number].file_page] = bytes(page)

    @rule(address=st.integers(0, GUEST_PAGES * PAGE_SIZE), length=st.integers(1, 3 * PAGE_SIZE))
    def read(self, address: int, length: int) -> None:
        pages = range(address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE))
        expected = self.error_of(pages, READ)
        if expected:
            with pytest.raises(GuestMemoryError) as caught:
                self.memory.view(address, length, READ)
            assert caught.value.errno in expected
        elif all(self.mapped[number].shared for number in pages):
            assert run_to_completion(self.memory.read(address, length)) == self.bytes_at(address, length)
            view = self.memory.view(address, length, READ)
            assert (view is None) == (len({self.mapped[number].region for number in pages}) > 1)
            assert view is None or view == self.bytes_at(address, length)

    @invariant()
    def the_accounts_add_up(self) -> None:
        stats = self.memory.stats()
        assert stats["pinned_pages"] == len(self.counts())
        assert stats["locked_bytes"] == len(self.counts()) * PAGE_SIZE
        assert stats["pins"] == len(self.held)
        assert stats["mapped_bytes"] == len(self.mapped) * PAGE_SIZE

    @invariant()
    def the_references_of_every_page_are_those_of_its_holders(self) -> None:
        found: Counter[int] = Counter()
        for run in self.memory.pinned_runs:
            assert run.start < run.end
            for number in range(run.start // PAGE_SIZE, run.end // PAGE_SIZE):
                assert number not in found
                found[number] = run.count
        assert found == self.counts()

    @invariant()
    def no_two_pinned_pages_share_a_dma_addr_and_every_pin_agrees_on_it(self) -> None:
        addresses: dict[int, int] = {}
        for held in self.held:
            for number in held.pages:
                address = held.pin.dma_addr(number * PAGE_SIZE)
                assert addresses.setdefault(number, address) == address
        assert len(set(addresses.values())) == len(addresses)

    @invariant()
    def what_a_pin_shows_is_the_guests_memory(self) -> None:
        for held in self.held:
            expected = b"".join(self.bytes_at(*one) for one in held.ranges)
            assert b"".join(held.pin.views()) == expected
            assert sum(segment.length for segment in held.pin.segments) == held.pin.length == len(expected)
            assert all(view.readonly != bool(held.prot & WRITE) for view in held.pin.views())

    def inside(self) -> st.SearchStrategy[GuestRange]:
        """Ranges that begin in memory that is mapped, mostly of whole pages, and may reach out of it."""
        whole = st.builds(
            lambda page, count: GuestRange(page * PAGE_SIZE, count * PAGE_SIZE),
            st.sampled_from(sorted(self.mapped)),
            st.integers(1, 5),
        )
        odd = st.builds(
            lambda page, offset, length: GuestRange(page * PAGE_SIZE + offset, length),
            st.sampled_from(sorted(self.mapped)),
            st.integers(0, PAGE_SIZE - 1),
            st.integers(1, 2 * PAGE_SIZE),
        )
        return whole | odd

    def take_away(self, pages: set[int]) -> None:
        self.mapped = {number: page for number, page in self.mapped.items() if number not in pages}
        for held in self.held:
            assert held.pin.revoked == bool(pages & set(held.pages))
        self.held = [held for held in self.held if not held.pin.revoked]

    def counts(self) -> Counter[int]:
        """References by page: a page that a list names in several ranges may count for each of them."""
        total: Counter[int] = Counter()
        for held in self.held:
            for start, end in held.pin.spans:
                total.update(range(start // PAGE_SIZE, end // PAGE_SIZE))
        assert set(total) == {number for held in self.held for number in held.pages}
        return total

    def error_of(self, pages: range, prot: Prot) -> set[int]:
        """The errnos that are right for this access."""
        errors = set()
        for number in pages:
            page = self.mapped.get(number)
            if page is None:
                errors.add(errno.EINVAL)
            elif prot & ~page.prot:
                errors.add(errno.EPERM)
        return errors

    def error_of_pin(self, pages: set[int], prot: Prot) -> set[int]:
        errors = set().union(*(self.error_of(range(number, number + 1), prot) for number in pages))
        if any(number in self.mapped and not self.mapped[number].shared for number in pages):
            errors.add(errno.EFAULT)
        if not errors and len(pages | set(self.counts())) > LIMIT:
            errors.add(errno.ENOMEM)
        return errors

    def bytes_at(self, address: int, length: int) -> bytes:
        first, last = address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE
        whole = b"".join(self.content[self.mapped[number].file_page] for number in range(first, last + 1))
        return whole[address - first * PAGE_SIZE :][:length]

    @staticmethod
    def dma_errno(ask: Callable[[], None]) -> int | None:
        with pytest.raises(DmaError) as caught:
            ask()
        return caught.value.errno


class SoftModel(MemoryModel):
    def __init__(self) -> None:
        super().__init__(SoftDomain(SMALLEST_APERTURE))

    @invariant()
    def the_aperture_shows_the_guests_page_at_its_dma_addr(self) -> None:
        assert isinstance(self.client.domain, SoftDomain)
        for held in self.held:
            for number in held.pages:
                at = held.pin.dma_addr(number * PAGE_SIZE)
                assert self.client.domain.memory[at : at + PAGE_SIZE] == self.bytes_at(
                    number * PAGE_SIZE, PAGE_SIZE
                )


class RecordingModel(MemoryModel):
    def __init__(self) -> None:
        super().__init__(RecordingDomain())

    @invariant()
    def the_domain_holds_every_pinned_page_once_and_no_other(self) -> None:
        domain = self.recorded()
        found = {}
        for run in self.memory.pinned_runs:
            for offset in range(0, run.end - run.start, PAGE_SIZE):
                found[run.dma_addr + offset] = (run.start + offset) // PAGE_SIZE
        assert found.keys() == domain.pages.keys()
        writers = {number for held in self.held if held.prot & WRITE for number in held.pages}
        for address, number in found.items():
            page = domain.pages[address]
            assert page.offset == self.mapped[number].file_page * PAGE_SIZE
            assert os.path.sameopenfile(page.backing.fd, self.client.fd)
            assert page.writable or number not in writers
            assert not page.writable or self.mapped[number].prot & WRITE


class ScatteredModel(RecordingModel):
    def domain(self) -> DmaDomain:
        return RecordingDomain(longest_segment=PAGE_SIZE)


SETTINGS = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestSoft = SoftModel.TestCase
TestSoft.settings = SETTINGS
TestRecording = RecordingModel.TestCase
TestRecording.settings = SETTINGS
TestScattered = ScatteredModel.TestCase
TestScattered.settings = SETTINGS
