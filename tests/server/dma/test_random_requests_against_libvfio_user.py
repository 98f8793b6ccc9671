"""Random requests of a client and its device: what libvfio-user's DMA functions answer is what ours must.

There is no model here. Where the two are known to differ (``DIFFERENCES`` of the other module), the library is asked
again in a way that they agree on.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from devices.contract import Prot
from server.dma.address_space import PAGE_SIZE
from tests.server.dma.both_sides import OK, SAME_ERROR, BothSides, Held
from tests.server.dma.sgl_server import LibraryRegion, build
from tests.server.dma.support import READ, READ_WRITE, WRITE

GUEST_PAGES = 32
FILE_PAGES = 64
MAX_REGIONS = 16
"""What the library holds."""
MAX_HELD = 4

PAGE = st.integers(0, GUEST_PAGES - 1)
COUNT = st.integers(1, 6)
AT = st.integers(0, FILE_PAGES - 6)
REGION_PROT = st.sampled_from([READ, READ_WRITE, READ_WRITE, READ_WRITE])
"""Not WRITE alone: the library lets a device read such a region."""
PIN_PROT = st.sampled_from([READ, WRITE, READ_WRITE])
LENGTH = st.integers(1, 4 * PAGE_SIZE) | COUNT.map(lambda count: count * PAGE_SIZE)
OFFSET = st.sampled_from([0, 0, 1, PAGE_SIZE - 1]) | st.integers(0, PAGE_SIZE - 1)


class BothSidesMachine(RuleBasedStateMachine):
    """What is held, is held in both; the library's side is asked what is mapped."""

    program: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.both = BothSides(self.program, Path(self.folder.name))
        self.library = self.both.library
        self.held: list[Held] = []
        self.offsets: dict[int, int] = {}
        """Where in the file each region begins, by IOVA; only for regions that are shared."""

    def teardown(self) -> None:
        self.both.close()
        self.folder.cleanup()

    @initialize(prot=REGION_PROT, counts=st.lists(COUNT, min_size=1, max_size=4))
    def start_with_neighbours(self, prot: Prot, counts: list[int]) -> None:
        page = 2
        for index, count in enumerate(counts):
            self.map_where_both_do(page, count, 40 - 8 * index, prot, shared=True)
            page += count

    @rule(page=PAGE, count=COUNT, at=AT, prot=REGION_PROT, unshared=st.integers(0, 3))
    def map(self, page: int, count: int, at: int, prot: Prot, unshared: int) -> None:
        self.map_where_both_do(page, count, at, prot, shared=unshared > 0)

    @precondition(lambda self: self.offsets)
    @rule(data=st.data(), count=COUNT, at=AT, prot=REGION_PROT)
    def map_a_neighbour(self, data: st.DataObject, count: int, at: int, prot: Prot) -> None:
        region = data.draw(st.sampled_from(self.library.regions))
        self.map_where_both_do((region.iova + region.size) // PAGE_SIZE, count, at, prot, shared=True)

    @precondition(lambda self: self.offsets)
    @rule(data=st.data())
    def unmap_a_region(self, data: st.DataObject) -> None:
        region = data.draw(st.sampled_from(self.library.regions))
        assert self.both.unmap(region.iova, region.size) == OK
        self.forget([region])

    @rule(page=PAGE, count=st.integers(1, 12))
    def unmap_a_range(self, page: int, count: int) -> None:
        iova, size = page * PAGE_SIZE, count * PAGE_SIZE
        touched = [
            one for one in self.library.regions if one.iova < iova + size and iova < one.iova + one.size
        ]
        inside = [one for one in touched if one.iova >= iova and one.iova + one.size <= iova + size]
        answers = self.both.unmap(iova, size)
        if not touched:
            assert answers == ("ENOENT", "ENOENT")
        elif touched != inside:
            assert answers == ("EINVAL", "ENOENT")
        elif answers != OK:
            assert answers == ("ok", "ENOENT")
            for region in inside:
                self.library.unmap(region.iova, region.size)
        self.forget(inside if touched == inside else [])

    @rule(chance=st.integers(0, 7))
    def unmap_everything(self, chance: int) -> None:
        if not chance:
            regions = self.library.regions
            assert self.both.unmap_all() == OK
            self.forget(regions)

    @rule(page=PAGE, offset=OFFSET, length=LENGTH, prot=PIN_PROT)
    def try_to_pin(self, page: int, offset: int, length: int, prot: Prot) -> None:
        self.pin_where_both_do(page * PAGE_SIZE + offset, length, prot)

    @precondition(lambda self: self.offsets)
    @rule(data=st.data(), offset=OFFSET, length=LENGTH, prot=PIN_PROT)
    def pin(self, data: st.DataObject, offset: int, length: int, prot: Prot) -> None:
        region = data.draw(st.sampled_from(self.library.regions))
        page = data.draw(st.integers(0, region.size // PAGE_SIZE - 1))
        self.pin_where_both_do(region.iova + page * PAGE_SIZE + offset, length, prot)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.both.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: any(one.prot & WRITE for one in self.held))
    @rule(data=st.data(), filling=st.integers(0, 255), ours=st.booleans())
    def write(self, data: st.DataObject, filling: int, ours: bool) -> None:
        held = data.draw(st.sampled_from([one for one in self.held if one.prot & WRITE]))
        content = bytes((filling + index) % 256 for index in range(held.length))
        if not ours:
            self.library.fill(held.number, content)
            return
        at = 0
        for view in held.pin.views():
            view[:] = content[at : at + len(view)]
            at += len(view)

    @invariant()
    def both_have_the_same_regions(self) -> None:
        self.both.check_same_regions()

    @invariant()
    def what_is_held_is_the_same_memory_and_the_clients(self) -> None:
        regions = self.library.regions
        for held in self.held:
            pieces = self.both.check_same_memory(held)
            assert b"".join(piece.data for piece in pieces) == self.in_file(held, regions)

    @invariant()
    def pages_are_pinned_while_they_are_held(self) -> None:
        pages = {
            page
            for held in self.held
            for page in range(held.address // PAGE_SIZE, (held.address + held.length - 1) // PAGE_SIZE + 1)
        }
        assert self.both.memory.stats()["pinned_pages"] == len(pages)

    def map_where_both_do(self, page: int, count: int, at: int, prot: Prot, *, shared: bool) -> None:
        iova, size = page * PAGE_SIZE, count * PAGE_SIZE
        regions = self.library.regions
        if len(regions) == MAX_REGIONS or any(region[:2] == (iova, size) for region in regions):
            return
        answers = self.both.map(iova, size, prot, offset=at * PAGE_SIZE, shared=shared)
        assert answers in (OK, ("EEXIST", "EINVAL"))
        if answers == OK and shared:
            self.offsets[iova] = at * PAGE_SIZE

    def pin_where_both_do(self, address: int, length: int, prot: Prot) -> None:
        answers = self.both.try_pin(address, length, prot)
        if answers != OK:
            self.check_refusal(answers.ours, address, length, prot)
            assert answers.library != "ok"
        elif len(self.held) < MAX_HELD:
            self.held.append(self.both.pin(address, length, prot))

    def check_refusal(self, ours: str, address: int, length: int, prot: Prot) -> None:
        """Where pages are refused for several reasons, the two may find another one first."""
        first, last = address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE
        pages = [self.both.try_pin(page * PAGE_SIZE, 1, prot) for page in range(first, last + 1)]
        refused = [page for page in pages if page != OK]
        assert ours in {page.ours for page in refused}
        assert all(page.library == SAME_ERROR[page.ours] for page in refused)

    def forget(self, regions: list[LibraryRegion]) -> None:
        """These regions are gone. Numbers of others have changed: the library's device gets its lists again."""
        for region in regions:
            self.offsets.pop(region.iova, None)
        for held in self.held:
            end = held.address + held.length
            assert held.pin.revoked == any(
                one.iova < end and held.address < one.iova + one.size for one in regions
            )
        self.held = [
            held._replace(number=self.library.get(held.address, held.length, held.prot.value))
            for held in self.held
            if not held.pin.revoked
        ]

    def in_file(self, held: Held, regions: list[LibraryRegion]) -> bytes:
        """The bytes of a range as the client finds them in its file."""
        parts = []
        for region in regions:
            start, end = (
                max(region.iova, held.address),
                min(region.iova + region.size, held.address + held.length),
            )
            if start < end:
                at = self.offsets[region.iova] + start - region.iova
                parts.append(os.pread(self.both.client.fd, end - start, at))
        return b"".join(parts)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sgl_server"))


def test_random_requests_have_the_same_effect_in_both(program: Path) -> None:
    BothSidesMachine.program = program
    run_state_machine_as_test(BothSidesMachine, settings=settings(max_examples=100, stateful_step_count=50))
