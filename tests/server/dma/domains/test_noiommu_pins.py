"""What the noiommu domain keeps pinned, by the kernel's own count, and for how long. Needs root, as the domain does."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE, AddressSpace
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domain import DmaDomain, DmaSegment, OutOfRuns
from server.dma.domains import noiommu, page_pinning
from server.dma.domains.noiommu import NoIommuDomain
from server.dma.domains.page_pinning import PagePins
from server.dma.errors import DmaError
from server.dma.spans import Ints
from tests.fds import open_fds
from tests.server.dma.domains.support import frames, pinned_pages, run
from tests.server.dma.memory_model import SETTINGS
from tests.server.dma.support import memfd

PAGES = 32


@pytest.fixture
def domain() -> Iterator[NoIommuDomain]:
    if os.geteuid() != 0:
        pytest.fail("this test needs root: only CAP_SYS_ADMIN sees physical addresses")
    one = NoIommuDomain()
    yield one
    one.close()


@pytest.fixture
def backing() -> Iterator[BackingFile]:
    files = BackingFiles(lambda _: None)
    one = files.acquire(memfd(PAGES), 0, PAGES * PAGE_SIZE, writable=True)
    yield one
    files.release(one)


@pytest.fixture
def read_only() -> Iterator[BackingFile]:
    files = BackingFiles(lambda _: None)
    fd = memfd(4)
    one = files.acquire(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 0, 4 * PAGE_SIZE, writable=False)
    os.close(fd)
    yield one
    files.release(one)


def addresses(segments: Sequence[DmaSegment]) -> list[int]:
    """The dma_addr of each page, in order."""
    return [page for start, length in segments for page in range(start, start + length, PAGE_SIZE)]


def unmap(domain: DmaDomain, segments: Sequence[DmaSegment]) -> None:
    for segment in segments:
        domain.unmap(*segment)


def test_pages_that_nobody_has_touched_yet_get_an_address(domain: NoIommuDomain) -> None:
    files = BackingFiles(lambda _: None)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 8 * PAGE_SIZE)
    empty = files.acquire(fd, 0, 8 * PAGE_SIZE, writable=True)
    segments = domain.map_runs([run(empty, 0, 8)], writable=False)
    assert addresses(segments) == [frame << PAGE_SHIFT for frame in frames(fd, 8)]
    unmap(domain, segments)
    files.release(empty)


def test_a_run_is_pinned_until_the_last_of_its_pages_is_unmapped(
    domain: NoIommuDomain, backing: BackingFile
) -> None:
    before = pinned_pages()
    first = addresses(domain.map_runs([run(backing, 4, 3), run(backing, 20)], writable=True))
    assert pinned_pages() == before + 4
    for page in (first[1], first[0]):
        domain.unmap(page, PAGE_SIZE)
    assert pinned_pages() == before + 4
    domain.unmap(first[2], PAGE_SIZE)
    assert pinned_pages() == before + 1
    domain.unmap(first[3], PAGE_SIZE)
    assert pinned_pages() == before


def test_guest_pages_that_alias_one_page_share_its_address_and_keep_it_pinned(
    domain: NoIommuDomain, backing: BackingFile
) -> None:
    before = pinned_pages()
    [one, other, _] = pinned = addresses(
        domain.map_runs([run(backing, 5), run(backing, 5), run(backing, 6)], writable=True)
    )
    [again] = addresses(domain.map_runs([run(backing, 5)], writable=True))
    assert one == other == again == frames(backing.fd, PAGES)[5] << PAGE_SHIFT
    domain.unmap(one, PAGE_SIZE)
    domain.unmap(one, PAGE_SIZE)
    assert pinned_pages() == before + 2
    domain.unmap(one, PAGE_SIZE)
    domain.unmap(pinned[2], PAGE_SIZE)
    assert pinned_pages() == before


def test_pages_that_are_taken_out_of_the_page_table_for_a_moment_are_found_all_the_same(
    domain: NoIommuDomain, backing: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PagePins.pin

    def pin_and_reclaim(pins: PagePins, address: int, length: int) -> int:
        slot = real(pins, address, length)
        memory = backing.space.view.obj
        assert isinstance(memory, mmap.mmap)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        memory.madvise(mmap.MADV_DONTNEED, address - start, length - PAGE_SIZE)
        return slot

    monkeypatch.setattr(PagePins, "pin", pin_and_reclaim)
    segments = domain.map_runs([run(backing, 3, 5)], writable=True)
    assert addresses(segments) == [frame << PAGE_SHIFT for frame in frames(backing.fd, PAGES)[3:8]]
    unmap(domain, segments)


def test_a_page_that_is_never_found_is_an_error_with_nothing_changed(
    domain: NoIommuDomain, backing: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, looks = pinned_pages(), [0]

    def nothing(_fd: int, length: int, _offset: int) -> bytes:
        looks[0] += 1
        return bytes(length)

    with monkeypatch.context() as patch:
        patch.setattr("server.dma.domains.noiommu.os.pread", nothing)
        with pytest.raises(DmaError, match="where a pinned page is") as caught:
            domain.map_runs([run(backing, 3, 5)], writable=True)
    assert caught.value.errno == errno.EFAULT
    assert 1 < looks[0] < 100
    assert pinned_pages() == before


def test_a_file_that_the_client_gave_read_only_cannot_be_pinned_and_nothing_stays_pinned(
    domain: NoIommuDomain, backing: BackingFile, read_only: BackingFile
) -> None:
    before, stats = pinned_pages(), domain.stats()
    with pytest.raises(DmaError, match="reading only") as caught:
        domain.map_runs([run(backing, 1, 4), run(read_only, 0)], writable=False)
    assert caught.value.errno == errno.EFAULT
    assert (pinned_pages(), domain.stats()) == (before, stats)


def test_a_file_whose_pages_the_kernel_does_not_pin_is_refused_with_what_helps(
    domain: NoIommuDomain,
) -> None:
    """As a file on a file system that writes back, which the kernel lets nobody pin for writing."""
    files = BackingFiles(lambda _: None)
    backing = files.acquire(memfd(4), 0, 4 * PAGE_SIZE, writable=True)
    backing.space.protect(0, PAGE_SIZE, writable=False)
    with pytest.raises(DmaError, match="memfd") as caught:
        domain.map_runs([run(backing, 2), run(backing, 0)], writable=True)
    assert caught.value.errno == errno.EFAULT
    assert domain.stats()["pinned_ranges"] == 0
    files.release(backing)


def test_more_runs_than_the_kernel_pins_are_refused_and_nothing_stays_pinned(
    backing: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_pinning, "MAX_SLOTS", 3)
    before, domain = pinned_pages(), NoIommuDomain()
    held = domain.map_runs([run(backing, 0)], writable=True)
    with pytest.raises(OutOfRuns):
        domain.map_runs([run(backing, page) for page in (2, 4, 6)], writable=True)
    assert pinned_pages() == before + 1
    more = domain.map_runs([run(backing, page) for page in (2, 4)], writable=True)
    unmap(domain, [*held, *more])
    domain.close()
    assert pinned_pages() == before


def test_closing_gives_back_fds_and_pages_and_may_be_repeated(backing: BackingFile) -> None:
    before = open_fds(), pinned_pages()
    domain = NoIommuDomain()
    domain.map_runs([run(backing, 0, 8)], writable=True)
    domain.close()
    domain.close()
    assert (open_fds(), pinned_pages()) == before


REFUSED = """
import ctypes, os, sys
from server.dma.domains.noiommu import NoIommuDomain
from server.dma.errors import DmaDomainUnavailable

PR_SET_DUMPABLE = 4
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
if sys.argv[1] == "dumpable":
    # As a program that was started without privilege: it may open its own pagemap.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
try:
    NoIommuDomain()
except DmaDomainUnavailable as refusal:
    print(refusal)
print(len(os.listdir("/proc/self/fd")) if sys.argv[1] == "dumpable" else 4)
"""


@pytest.mark.parametrize("state", ["dumpable", "not dumpable"])
def test_a_process_without_privilege_is_told_that_it_takes_root(state: str) -> None:
    child = subprocess.run([sys.executable, "-c", REFUSED, state], check=True, capture_output=True, text=True)
    refusal, fds = child.stdout.splitlines()
    assert refusal.startswith("the noiommu DMA domain needs root: /proc/self/pagemap")
    assert fds == "4"  # the three standard ones, and that of the listing


FIRST_FRAME = 0x4000


class FakePins:
    """Pins that the test can look into: the file pages of each slot."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.slots: dict[int, range] = {}
        self.next = 0

    @property
    def free_slots(self) -> int:
        return 1

    def pin(self, address: int, length: int) -> int:
        first = (address - self.base) >> PAGE_SHIFT
        self.next += 1
        self.slots[self.next] = range(first, first + (length >> PAGE_SHIFT))
        return self.next

    def unpin(self, slot: int) -> None:
        del self.slots[slot]

    def close(self) -> None:
        self.slots.clear()


class PinsModel(RuleBasedStateMachine):
    """Which pages are pinned against how often each is mapped, in memory that is contiguous: all mappings touch."""

    def __init__(self) -> None:
        super().__init__()
        self.files = BackingFiles(lambda _: None)
        self.backing = self.files.acquire(memfd(PAGES), 0, PAGES * PAGE_SIZE, writable=True)
        self.pins = FakePins(self.backing.space.address)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(noiommu, "PagePins", lambda: self.pins)
        self.patch.setattr(noiommu, "_check_privilege", lambda _: None)
        self.patch.setattr(noiommu, "_frames", self.frames)
        self.patch.setattr(noiommu, "MAX_PIN_BYTES", 5 * PAGE_SIZE)
        self.domain = NoIommuDomain()
        self.mapped = [0] * PAGES

    def frames(self, _pagemap: int, _space: AddressSpace, offset: int, length: int) -> Ints:
        first = FIRST_FRAME + (offset >> PAGE_SHIFT)
        return np.arange(first, first + (length >> PAGE_SHIFT), dtype=np.int64)

    def teardown(self) -> None:
        for page, count in enumerate(self.mapped):
            for _ in range(count):
                self.domain.unmap(FIRST_FRAME + page << PAGE_SHIFT, PAGE_SIZE)
        assert not self.pins.slots
        self.domain.close()
        self.files.release(self.backing)
        self.patch.undo()

    @rule(spans=st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8)), min_size=1, max_size=4))
    def map(self, spans: list[tuple[int, int]]) -> None:
        runs = [(start, min(count, PAGES - start)) for start, count in spans]
        segments = self.domain.map_runs([run(self.backing, *one) for one in runs], writable=True)
        expected = [page for start, count in runs for page in range(start, start + count)]
        assert addresses(segments) == [FIRST_FRAME + page << PAGE_SHIFT for page in expected]
        for page in expected:
            self.mapped[page] += 1

    @precondition(lambda self: any(self.mapped))
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from([page for page in range(PAGES) if self.mapped[page]]))
        longest = next((page for page in range(start, PAGES) if not self.mapped[page]), PAGES) - start
        count = data.draw(st.integers(1, longest))
        self.domain.unmap(FIRST_FRAME + start << PAGE_SHIFT, count * PAGE_SIZE)
        for page in range(start, start + count):
            self.mapped[page] -= 1

    @invariant()
    def every_mapped_page_is_pinned_and_every_pin_has_one(self) -> None:
        pinned = {page for slot in self.pins.slots.values() for page in slot}
        assert {page for page in range(PAGES) if self.mapped[page]} <= pinned
        assert len(self.pins.slots) <= sum(self.mapped)
        assert all(any(self.mapped[page] for page in slot) for slot in self.pins.slots.values())
        assert self.domain.stats()["pinned_ranges"] == len(self.pins.slots)


PinsModel.TestCase.settings = SETTINGS
TestPins = PinsModel.TestCase
