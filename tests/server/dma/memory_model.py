"""The plainest model of the whole core: dictionaries of pages. What is checked holds in every DMA domain."""

from __future__ import annotations

import errno
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
from tests.server.dma.support import READ, READ_WRITE, WRITE, Client, keep, let_go, page_of, pages

GUEST_PAGES = 24
FILE_PAGES = 32
LIMIT = 12
NO_LIMIT = 1000
RETAIN = 5

PAGE = st.integers(0, GUEST_PAGES - 1)
COUNT = st.integers(1, 6)
PROT = st.sampled_from([READ_WRITE, READ, WRITE])
LIKELY = st.integers(0, 7).map(bool)
SELDOM = st.integers(0, 9).map(lambda number: number == 7)
ANYWHERE = st.builds(GuestRange, st.integers(0, GUEST_PAGES * PAGE_SIZE), st.integers(1, 3 * PAGE_SIZE))


SETTINGS = settings(max_examples=60, stateful_step_count=40, deadline=None)


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
    pages: frozenset[int]
    prot: Prot


class MemoryModel(RuleBasedStateMachine):
    """Random requests of a client and of holders; the subclasses choose the domain, and how much is retained."""

    retain = 0
    collide = False
    """Whether guest pages that alias one page of the client's file have one dma_addr."""

    def make_domain(self) -> DmaDomain:
        raise AssertionError("the subclass has a domain")

    def __init__(self) -> None:
        super().__init__()
        self.domain = self.make_domain()
        # Where what lingers counts, too, there is no saying when a limit would be met.
        self.limit = NO_LIMIT if self.domain.locks_memory else LIMIT
        self.client = Client(
            self.domain,
            file_pages=FILE_PAGES,
            max_pinned=self.limit * PAGE_SIZE,
            retain=self.retain * PAGE_SIZE,
        )
        self.retained: dict[int, int] = {}
        self.releases = 0
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
        for numbers in ((3, 11, 4), (4, 12)):
            ranges = pages(*numbers)
            pin = self.memory.pin_pages(ranges, READ_WRITE, keep)
            self.held.append(Held(pin, ranges, frozenset(numbers), READ_WRITE))

    def teardown(self) -> None:
        self.client.close()
        assert all(held.pin.revoked for held in self.held)
        assert self.memory.pinned_runs == []
        self.domain.close()

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

    @rule(now=SELDOM)
    def unmap_all(self, now: bool) -> None:
        if not now:
            return
        self.memory.unmap_all()
        self.take_away(set(self.mapped))

    @precondition(lambda self: self.mapped)
    @rule(data=st.data(), prot=PROT, on_unmap=st.sampled_from([keep, let_go, fail]))
    def pin(self, data: st.DataObject, prot: Prot, on_unmap: Callable[[PinnedPages], None]) -> None:
        ranges = data.draw(st.lists(self.inside() if data.draw(LIKELY) else ANYWHERE, min_size=1, max_size=4))
        pages = frozenset(
            number
            for address, length in ranges
            for number in range(address // PAGE_SIZE, -(-(address + length) // PAGE_SIZE))
        )
        expected = self.error_of_pin(pages, prot)
        if expected:
            with pytest.raises(GuestMemoryError) as caught:
                self.memory.pin_pages(ranges, prot, on_unmap)
            assert caught.value.errno in expected
            return
        wanted = set(pages)
        hits = wanted & (self.pinned() | set(self.retained))
        over = len(self.pinned() | wanted | set(self.retained)) - self.limit
        before = self.memory.stats()
        self.held.append(Held(self.memory.pin_pages(ranges, prot, on_unmap), ranges, pages, prot))
        after = self.memory.stats()
        assert after["hits"] == int(str(before["hits"])) + len(hits)
        assert after["misses"] == int(str(before["misses"])) + len(wanted - hits)
        for number in wanted:
            self.retained.pop(number, None)
        self.evict(over)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        held.pin.release()
        self.let_go(held)
        self.evict(len(self.retained) - self.retain)

    @rule(now=SELDOM)
    def reset(self, now: bool) -> None:
        """The device is reset: nothing stays pinned, and the client's memory stays mapped."""
        if not now:
            return
        self.memory.reset()
        assert all(held.pin.revoked for held in self.held)
        self.held.clear()
        self.retained.clear()

    @rule(
        address=st.integers(2 * PAGE_SIZE, GUEST_PAGES * PAGE_SIZE),
        length=st.integers(1, 2 * PAGE_SIZE),
        fill=st.integers(0, 255),
    )
    def write(self, address: int, length: int, fill: int) -> None:
        data = bytes([fill]) * length
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
        mapped = len(self.pinned() | set(self.retained))
        assert stats["pinned_pages"] == len(self.pinned())
        assert stats["retained_pages"] == len(self.retained) <= self.retain
        assert stats["dma_mapped_pages"] == mapped
        assert stats["locked_bytes"] == (mapped + self.domain.held_pages) * PAGE_SIZE
        assert mapped + self.domain.held_pages <= self.limit
        assert stats["pins"] == len(self.held)
        assert stats["mapped_bytes"] == len(self.mapped) * PAGE_SIZE

    @invariant()
    def the_references_of_every_page_are_those_of_its_holders(self) -> None:
        pins: dict[int, int] = {}
        writers: dict[int, int] = {}
        for run in self.memory.pinned_runs:
            assert run.start < run.end
            for number in range(run.start // PAGE_SIZE, run.end // PAGE_SIZE):
                assert number not in pins
                pins[number] = run.pins
                writers[number] = run.writers
        expected = Counter(number for held in self.held for number in held.pages)
        writing = Counter(number for held in self.held if held.prot & WRITE for number in held.pages)
        assert pins == expected | dict.fromkeys(self.retained, 0)
        assert writers == {number: writing[number] for number in pins}

    @invariant()
    def no_two_pinned_pages_share_a_dma_addr_and_every_pin_agrees_on_it(self) -> None:
        addresses: dict[int, int] = {}
        for held in self.held:
            inside = [number * PAGE_SIZE + number for number in held.pages]
            assert list(held.pin.dma_addrs(inside)) == [held.pin.dma_addr(address) for address in inside]
            for number in held.pages:
                address = held.pin.dma_addr(number * PAGE_SIZE)
                assert addresses.setdefault(number, address) == address
        different = {self.mapped[number].file_page for number in addresses} if self.collide else addresses
        assert len(set(addresses.values())) == len(different)

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
        gone = [held for held in self.held if held.pin.revoked]
        self.held = [held for held in self.held if not held.pin.revoked]
        for held in gone:
            self.let_go(held)
        self.retained = {number: stamp for number, stamp in self.retained.items() if number not in pages}
        self.evict(len(self.retained) - self.retain)

    def pinned(self) -> set[int]:
        return {number for held in self.held for number in held.pages}

    def let_go(self, held: Held) -> None:
        """``held`` is no longer held: its last pages may be retained."""
        if self.retain:
            self.releases += 1
            self.retained |= dict.fromkeys(set(held.pages) - self.pinned(), self.releases)

    def evict(self, count: int) -> None:
        """Of the retained pages ``count`` are gone, and none that went was let go after one that stayed."""
        here = {
            number
            for run in self.memory.pinned_runs
            if not run.pins
            for number in range(run.start // PAGE_SIZE, run.end // PAGE_SIZE)
        }
        gone = {number: self.retained[number] for number in self.retained if number not in here}
        self.retained = {number: self.retained[number] for number in here}
        assert len(gone) == max(count, 0)
        assert not gone or max(gone.values()) <= min(self.retained.values(), default=self.releases)

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

    def error_of_pin(self, pages: frozenset[int], prot: Prot) -> set[int]:
        errors = set().union(*(self.error_of(range(number, number + 1), prot) for number in pages))
        if any(number in self.mapped and not self.mapped[number].shared for number in pages):
            errors.add(errno.EFAULT)
        if not errors and len(pages | self.pinned()) > self.limit:
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
