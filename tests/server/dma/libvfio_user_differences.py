"""Where our DMA core and libvfio-user's differ: each case, what either answers, and why ours is as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from server.dma.address_space import PAGE_SIZE
from tests.fds import open_fds
from tests.server.dma.both_sides import OK, BothSides, Outcomes, outcome, written_by
from tests.server.dma.support import READ, READ_WRITE, WRITE, memfd

BASE = 16 * PAGE_SIZE
"""Where the tests map memory."""
TOP = 1 << 64
TIB = 1 << 40
MAX_PINNED = 32 * PAGE_SIZE
LIBRARYS_MAX_REGIONS = 16
"""MAX_DMA_REGIONS in lib/private.h."""


class Difference(NamedTuple):
    """What the two answer to ``ask``, and why ours is what it is."""

    case: str
    ours: str
    library: str
    why: str
    ask: Callable[[BothSides], Outcomes]


def region(both: BothSides, pages: int = 4, prot: int = READ_WRITE, *, page: int = 0) -> None:
    """Map a region that both accept: page ``page`` of the file and on."""
    assert both.map(BASE + page * PAGE_SIZE, pages * PAGE_SIZE, prot, offset=page * PAGE_SIZE) == OK


def hole(both: BothSides) -> Outcomes:
    return both.try_pin(BASE, 1)


def permission(both: BothSides) -> Outcomes:
    region(both, prot=READ)
    return both.try_pin(BASE, 1, WRITE)


def reading_what_is_for_writing(both: BothSides) -> Outcomes:
    region(both, prot=WRITE)
    return both.try_pin(BASE, 1, READ)


def no_permission_asked_for(both: BothSides) -> Outcomes:
    region(both)
    return both.try_pin(BASE, 1, 0)


def empty_range(both: BothSides) -> Outcomes:
    region(both)
    return both.try_pin(BASE, 0)


def wrapping_range(both: BothSides) -> Outcomes:
    region(both)
    # The library compares its last region's end with the wrapped one first.
    assert both.try_pin(BASE, 1) == OK
    return both.try_pin(BASE + PAGE_SIZE, TOP - PAGE_SIZE)


def over_the_limit(both: BothSides) -> Outcomes:
    region(both, MAX_PINNED // PAGE_SIZE + 1)
    return both.try_pin(BASE, MAX_PINNED + 1)


def one_segment(both: BothSides) -> Outcomes:
    assert both.map(BASE, PAGE_SIZE) == OK
    assert both.map(BASE + PAGE_SIZE, PAGE_SIZE, offset=9 * PAGE_SIZE) == OK
    held = both.pin(BASE, 2 * PAGE_SIZE)
    return Outcomes(f"{len(held.pin.segments)} in a row", f"{len(both.library.show(held.number))} in a row")


def overlap(both: BothSides) -> Outcomes:
    region(both)
    return both.map(BASE + PAGE_SIZE, 4 * PAGE_SIZE)


def the_same_again(both: BothSides) -> Outcomes:
    region(both)
    return both.map(BASE, 4 * PAGE_SIZE)


def fd_of_the_same_again(both: BothSides) -> Outcomes:
    region(both)
    before = both.library.open_fds, open_fds()
    both.map(BASE, 4 * PAGE_SIZE)
    after = both.library.open_fds, open_fds()
    return Outcomes(f"{after[1] - before[1]} more", f"{after[0] - before[0]} more")


def many_regions(both: BothSides) -> Outcomes:
    for page in range(LIBRARYS_MAX_REGIONS):
        region(both, 1, page=page)
    return both.map(BASE + LIBRARYS_MAX_REGIONS * PAGE_SIZE, PAGE_SIZE)


def unaligned_address(both: BothSides) -> Outcomes:
    return both.map(BASE + 1, PAGE_SIZE)


def unaligned_size(both: BothSides) -> Outcomes:
    return both.map(BASE, PAGE_SIZE + 1)


def unaligned_offset(both: BothSides) -> Outcomes:
    return both.map(BASE, PAGE_SIZE, offset=1)


def no_permission(both: BothSides) -> Outcomes:
    return both.map(BASE, PAGE_SIZE, 0)


def empty_region(both: BothSides) -> Outcomes:
    return both.map(BASE, 0, shared=False)


def wrapping_region(both: BothSides) -> Outcomes:
    return both.map(TOP - PAGE_SIZE, 2 * PAGE_SIZE, shared=False)


def huge_region(both: BothSides) -> Outcomes:
    return both.map(0, 9 * TIB, shared=False)


def short_file(both: BothSides) -> Outcomes:
    fd = memfd(1)
    answers = both.map(BASE, 2 * PAGE_SIZE, fd=fd)
    os.close(fd)
    return answers


def no_file(both: BothSides) -> Outcomes:
    fd = os.eventfd(0)
    answers = both.map(BASE, PAGE_SIZE, fd=fd)
    os.close(fd)
    return answers


def truncation(both: BothSides) -> Outcomes:
    """Whether the client can cut off memory that it shares, which each side is given in a file of its own."""
    fds = memfd(1), memfd(1)
    both.memory.map(BASE, PAGE_SIZE, READ, os.dup(fds[0]))
    both.library.map(BASE, PAGE_SIZE, READ, fds[1])
    answers = Outcomes(*(outcome(partial(os.ftruncate, fd, 0)) for fd in fds))
    for fd in fds:
        os.close(fd)
    return answers


def part_of_a_region(both: BothSides) -> Outcomes:
    region(both)
    return both.unmap(BASE, PAGE_SIZE)


def two_regions_at_once(both: BothSides) -> Outcomes:
    region(both, 1)
    region(both, 1, page=1)
    answers = both.unmap(BASE, 2 * PAGE_SIZE)
    assert both.memory.stats()["regions"] == 0
    return answers


def unmapping_an_empty_range(both: BothSides) -> Outcomes:
    region(both)
    return both.unmap(BASE, 0)


def held_over_anothers_unmap(both: BothSides) -> Outcomes:
    region(both, 1)
    region(both, 1, page=1)
    region(both, 1, page=2)
    held = both.pin(BASE + PAGE_SIZE, PAGE_SIZE)
    assert both.unmap(BASE, PAGE_SIZE) == OK
    (shown,) = both.library.show(held.number)
    return Outcomes(*(f"page {page[0]}" for page in (held.pin.views()[0], shown.data)))


def held_over_its_own_unmap(both: BothSides) -> Outcomes:
    region(both, 1)
    region(both, 1, page=1)
    held = both.pin(BASE, PAGE_SIZE)
    assert both.unmap(BASE, PAGE_SIZE) == OK
    return Outcomes(outcome(held.pin.views), f"page {both.library.show(held.number)[0].data[0]}")


def message_to_the_middle(both: BothSides) -> Outcomes:
    assert both.map(BASE, PAGE_SIZE, shared=False) == OK
    both.library.send(BASE + 8, b"data")
    messages = written_by(both.memory.write(BASE + 8, b"data")) + both.library.written
    return Outcomes(*(f"at {message.address - BASE}" for message in messages))


def message_over_a_border(both: BothSides) -> Outcomes:
    assert both.map(BASE, PAGE_SIZE, shared=False) == OK
    assert both.map(BASE + PAGE_SIZE, PAGE_SIZE, shared=False) == OK
    address = BASE + PAGE_SIZE - 1
    return Outcomes(
        outcome(lambda: written_by(both.memory.write(address, b"ab"))),
        outcome(lambda: both.library.send(address, b"ab")),
    )


def dirty_while_held(both: BothSides) -> Outcomes:
    both.log_dirty_pages()
    region(both)
    both.pin(BASE, PAGE_SIZE)
    return Outcomes(*(f"{pages:b}" for pages in both.dirty_pages(BASE, 4 * PAGE_SIZE)))


def dirty_bitmap_of_a_part(both: BothSides) -> Outcomes:
    both.log_dirty_pages()
    region(both, 1)
    region(both, 1, page=1)
    return Outcomes(
        outcome(lambda: both.memory.dirty_bitmap(BASE, 2 * PAGE_SIZE, PAGE_SIZE)),
        outcome(lambda: both.library.unmap_and_report(BASE, 2 * PAGE_SIZE, PAGE_SIZE)),
    )


def dirty_bitmap_of_other_pages(both: BothSides) -> Outcomes:
    both.log_dirty_pages()
    region(both)
    return Outcomes(
        outcome(lambda: both.memory.dirty_bitmap(BASE, 4 * PAGE_SIZE, 2 * PAGE_SIZE)),
        outcome(lambda: both.library.unmap_and_report(BASE, 4 * PAGE_SIZE, 2 * PAGE_SIZE)),
    )


TYPE1 = "as VFIO_IOMMU_MAP_DMA and _UNMAP_DMA of type1 v2 (linux/vfio.h, vfio_iommu_type1.c)"
PIN = "as vfio_pin_pages (drivers/vfio/vfio_iommu_type1.c)"

DIFFERENCES = [
    Difference("pin: a hole", "EINVAL", "ENOENT", PIN, hole),
    Difference("pin: not permitted", "EPERM", "EACCES", PIN, permission),
    Difference(
        "pin: reading a region that is for writing",
        "EPERM",
        "ok",
        "the client permits it no more than the other way round; the library checks PROT_WRITE only",
        reading_what_is_for_writing,
    ),
    Difference(
        "pin: no permission asked for",
        "EINVAL",
        "ok",
        "a device that does nothing with pages has no reason to hold them",
        no_permission_asked_for,
    ),
    Difference(
        "pin: an empty range",
        "EINVAL",
        "ok",
        "it has no dma_addr; the library's list has no entries, which its vfu_sgl_get must not be given",
        empty_range,
    ),
    Difference(
        "pin: a range that wraps",
        "EOVERFLOW",
        "ok",
        "the library's sum wraps too, so that it gives a list that reaches beyond every region",
        wrapping_range,
    ),
    Difference("pin: over the limit", "ENOMEM", "ok", "the library has no account of pages", over_the_limit),
    Difference(
        "pin: two regions that follow each other",
        "1 in a row",
        "2 in a row",
        "our domain makes pages contiguous; the library has a mapping per region, and no dma_addr",
        one_segment,
    ),
    Difference("map: overlapping another", "EEXIST", "EINVAL", TYPE1, overlap),
    Difference("map: the same again", "EEXIST", "ok", TYPE1, the_same_again),
    Difference(
        "map: the same again, fds",
        "0 more",
        "1 more",
        "an fd that is not kept is closed; the library forgets it, which a client may repeat",
        fd_of_the_same_again,
    ),
    Difference(
        "map: a 17th region", "ok", "EINVAL", "clients are told of 65,535 (max_dma_maps)", many_regions
    ),
    Difference("map: an unaligned address", "EINVAL", "ok", TYPE1, unaligned_address),
    Difference("map: an unaligned size", "EINVAL", "ok", TYPE1, unaligned_size),
    Difference(
        "map: an unaligned offset",
        "EINVAL",
        "ok",
        "no page starts there; the library's mapping ends before its region does",
        unaligned_offset,
    ),
    Difference("map: without a permission", "EINVAL", "ok", TYPE1, no_permission),
    Difference("map: empty, not shared", "EINVAL", "ok", TYPE1, empty_region),
    Difference("map: wrapping", "EINVAL", "ok", TYPE1, wrapping_region),
    Difference(
        "map: 9 TiB",
        "ok",
        "ENOSPC",
        "nothing here grows with the size of a region (MAX_DMA_SIZE)",
        huge_region,
    ),
    Difference(
        "map: a file that is too short",
        "EINVAL",
        "ok",
        "it would be SIGBUS at the first access beyond the file's end",
        short_file,
    ),
    Difference(
        "map: a file that cannot be mapped",
        "EINVAL",
        "ENODEV",
        "told by its kind, before there is an mmap that could say so",
        no_file,
    ),
    Difference(
        "map: the client truncates the file",
        "EPERM",
        "ok",
        "sealed against shrinking, where a file can be, for the same SIGBUS",
        truncation,
    ),
    Difference("unmap: a part of a region", "EINVAL", "ENOENT", TYPE1, part_of_a_region),
    Difference("unmap: two regions at once", "ok", "ENOENT", TYPE1, two_regions_at_once),
    Difference("unmap: an empty range", "EINVAL", "ENOENT", TYPE1, unmapping_an_empty_range),
    Difference(
        "unmap: a page held over another's unmapping",
        "page 1",
        "page 2",
        "a pin is of pages; the library's entry is a number of a region, and they move up: its device has to quiesce",
        held_over_anothers_unmap,
    ),
    Difference(
        "unmap: a page held over its own unmapping",
        "EINVAL",
        "page 1",
        "what is not let go is revoked; the library trusts its device, and shows the region that moved up",
        held_over_its_own_unmap,
    ),
    Difference(
        "message: to the middle of a region",
        "at 8",
        "at 0",
        "a defect: vfu_dma_transfer leaves the entry's offset out of the address",
        message_to_the_middle,
    ),
    Difference(
        "message: over a border",
        "ok",
        "ENOTSUP",
        "one message per region; the library does one entry and no more",
        message_over_a_border,
    ),
    Difference(
        "dirty: a page that is held for writing",
        "1",
        "0",
        "it may be written at any moment until it is given back; the library marks it then, and not before",
        dirty_while_held,
    ),
    Difference(
        "dirty: of two regions",
        "ok",
        "ENOTSUP",
        "a range is the client's choice (VFIO_USER_DEVICE_FEATURE, DMA_LOGGING_REPORT)",
        dirty_bitmap_of_a_part,
    ),
    Difference(
        "dirty: in pages of another size",
        "ok",
        "EINVAL",
        "the size that logging starts with is a hint (linux/vfio.h)",
        dirty_bitmap_of_other_pages,
    ),
]
