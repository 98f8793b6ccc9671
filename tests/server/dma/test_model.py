"""The whole core against a naive model, in every DMA domain that needs no privilege."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis.stateful import invariant

from server.dma.address_space import PAGE_SIZE
from server.dma.domain import DmaDomain
from server.dma.domains.recording import RecordingDomain
from server.dma.domains.soft import SMALLEST_APERTURE, SoftDomain
from server.dma.pin import Pin
from tests.server.dma.memory_model import RETAIN, SETTINGS, MemoryModel
from tests.server.dma.support import WRITE


class SoftModel(MemoryModel):
    domain: SoftDomain

    def make_domain(self) -> DmaDomain:
        return SoftDomain(SMALLEST_APERTURE)

    @invariant()
    def the_aperture_shows_the_guests_page_at_its_dma_addr(self) -> None:
        for held in self.held:
            for number in held.pages:
                at = held.pin.dma_addr(number * PAGE_SIZE)
                assert self.domain.memory[at : at + PAGE_SIZE] == self.bytes_at(number * PAGE_SIZE, PAGE_SIZE)

    @invariant()
    def the_processs_own_page_table_maps_what_the_cache_maps_and_what_it_shows(self) -> None:
        """Each mapped page once, and once more for a list that is shown in one piece out of place."""
        shown_twice = sum(
            pages_in(held.pin) for held in self.held if len(held.pin.segments) > 1 == len(held.pin.views())
        )
        expected = len(self.pinned()) + len(self.retained) + shown_twice
        assert pages_mapped_in(self.domain) == expected


class RetainingSoftModel(SoftModel):
    retain = RETAIN


class RecordingModel(MemoryModel):
    domain: RecordingDomain

    def make_domain(self) -> DmaDomain:
        return RecordingDomain()

    @invariant()
    def the_domain_holds_every_mapped_page_once_and_no_other(self) -> None:
        found: dict[int, int] = {}
        for run in self.memory.pinned_runs:
            for offset in range(0, run.end - run.start, PAGE_SIZE):
                assert found.setdefault(run.dma_addr + offset, run.start + offset) == run.start + offset
        assert found.keys() == self.domain.pages.keys()
        assert {address // PAGE_SIZE for address in found.values()} == self.pinned() | set(self.retained)
        writers = {number for held in self.held if held.prot & WRITE for number in held.pages}
        for address, guest in found.items():
            page, number = self.domain.pages[address], guest // PAGE_SIZE
            assert page.offset == self.mapped[number].file_page * PAGE_SIZE
            assert os.path.sameopenfile(page.backing.fd, self.client.fd)
            assert page.writable or number not in writers
            assert not page.writable or self.mapped[number].prot & WRITE


class RetainingModel(RecordingModel):
    retain = RETAIN


class ScatteredModel(RecordingModel):
    def make_domain(self) -> DmaDomain:
        return RecordingDomain(longest_segment=PAGE_SIZE)


class RetainingScatteredModel(ScatteredModel):
    retain = RETAIN


def pages_in(pin: Pin) -> int:
    """The pages of the list, those that it names several times counted as often."""
    return pin.scatter.parts.pages


def pages_mapped_in(domain: SoftDomain) -> int:
    """How many pages of tests' memfds the kernel has in the aperture."""
    pages = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:guest" in line:
            start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if domain.address <= start < domain.address + domain.size:
                pages += (end - start) // PAGE_SIZE
    return pages


for model in (
    SoftModel,
    RetainingSoftModel,
    RecordingModel,
    RetainingModel,
    ScatteredModel,
    RetainingScatteredModel,
):
    model.TestCase.settings = SETTINGS

TestSoft = SoftModel.TestCase
TestRetainingSoft = RetainingSoftModel.TestCase
TestRecording = RecordingModel.TestCase
TestRetaining = RetainingModel.TestCase
TestScattered = ScatteredModel.TestCase
TestRetainingScattered = RetainingScatteredModel.TestCase
