"""The replay's guest memory: who mapped what, although replies come later than the next request."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from protocol import DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags
from protocol.trace import TraceError
from server.trace.fd_facts import FdFacts
from server.trace.replay import memory as replay_memory
from server.trace.replay.memory import MAX_LEAVING, ReplayMemory
from tests.fds import open_fds, settled_fds

PAGE = 4096
BASE = 16 * PAGE
FILE = FdFacts("memfd", 1, 7, 1 << 20)


@pytest.fixture
def memory() -> Iterator[ReplayMemory]:
    before = settled_fds()
    made = ReplayMemory()
    yield made
    made.close()
    assert open_fds() == before


def region(address: int, pages: int = 1, offset: int = 0) -> DmaMap:
    return DmaMap(address, pages * PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE, offset)


def unmapped(address: int, pages: int = 1) -> DmaUnmap:
    return DmaUnmap(address, pages * PAGE)


@pytest.mark.parametrize("facts", [None, FILE])
def test_an_unmap_that_is_answered_late_leaves_what_was_mapped_behind_it(
    memory: ReplayMemory, facts: FdFacts | None
) -> None:
    memory.map(region(BASE, 8), facts, 1)
    memory.map(region(BASE, 2), facts, 3)
    memory.unmap(unmapped(BASE, 8), 2)
    memory.put(BASE, b"new")
    assert memory.get(BASE, 3) == b"new"
    with pytest.raises(OSError, match="not mapped"):
        memory.get(BASE + 2 * PAGE, 1)


def test_private_memory_that_is_mapped_again_is_new_and_nothing_else_is_touched(memory: ReplayMemory) -> None:
    fds = settled_fds()
    for number in range(1, 6):
        memory.map(region(BASE), None, number)
        memory.settle()
        assert memory.get(BASE, 4) == bytes(4)
        stranger = os.memfd_create("stranger", os.MFD_CLOEXEC)
        memory.put(BASE, b"mine")
        assert os.fstat(stranger).st_size == 0
        os.close(stranger)
    assert open_fds() == fds + 1


def test_what_is_left_around_a_region_in_the_middle_keeps_its_bytes(memory: ReplayMemory) -> None:
    memory.map(region(BASE, 3), None, 1)
    memory.put(BASE, b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    memory.map(region(BASE + PAGE), FILE, 2)
    memory.settle()
    assert memory.get(BASE, 3 * PAGE) == b"a" * PAGE + bytes(PAGE) + b"c" * PAGE
    memory.unmap(unmapped(BASE, 3), 3)
    memory.settle()
    with pytest.raises(OSError, match="not mapped"):
        memory.get(BASE, 1)


def test_two_regions_of_a_file_show_the_same_bytes(memory: ReplayMemory) -> None:
    memory.map(region(BASE, 1, 2 * PAGE), FILE, 1)
    memory.map(region(0, 4), FILE, 2)
    memory.put(BASE, b"seen")
    assert memory.get(2 * PAGE, 4) == b"seen"


def test_a_region_that_the_server_refused_is_gone(memory: ReplayMemory) -> None:
    memory.map(region(BASE), None, 4)
    memory.refused(region(BASE), 4)
    memory.put(BASE, b"x")
    with pytest.raises(OSError, match="not mapped"):
        memory.get(BASE, 1)


def test_all_means_all_that_was_mapped_before(memory: ReplayMemory) -> None:
    memory.map(region(0), None, 1)
    memory.map(region(BASE), None, 2)
    memory.map(region(2 * BASE), None, 4)
    memory.unmap(DmaUnmap(flags=DmaUnmapFlags.ALL), 3)
    assert memory.get(2 * BASE, 1) == b"\0"
    for gone in (0, BASE):
        with pytest.raises(OSError, match="not mapped"):
            memory.get(gone, 1)


def test_an_unmap_takes_whole_regions_only(memory: ReplayMemory) -> None:
    for page in range(4):
        memory.map(region(BASE + 2 * page * PAGE, 2), None, page)
    memory.unmap(DmaUnmap(BASE + PAGE, 6 * PAGE), 9)
    assert memory.get(BASE, 2 * PAGE) == bytes(2 * PAGE)
    assert memory.get(BASE + 6 * PAGE, 2 * PAGE) == bytes(2 * PAGE)
    with pytest.raises(OSError, match="not mapped"):
        memory.get(BASE + 2 * PAGE, 1)
    with pytest.raises(OSError, match="not mapped"):
        memory.get(BASE + 5 * PAGE, 1)


def test_what_was_unmapped_is_found_until_it_is_settled(memory: ReplayMemory) -> None:
    memory.map(region(BASE), None, 1)
    memory.put(BASE, b"last words")
    memory.unmap(unmapped(BASE), 2)
    assert memory.found(BASE, 10) == [b"last words"]
    memory.map(region(BASE), None, 3)
    assert memory.found(BASE, 10) == [bytes(10), b"last words"]
    memory.settle()
    assert memory.found(BASE, 10) == [bytes(10)]
    assert memory.found(0, 10) == []


def test_of_what_leaves_at_once_only_so_much_is_remembered(memory: ReplayMemory) -> None:
    for page in range(2 * MAX_LEAVING):
        memory.map(region(page * PAGE), None if page % 2 else FILE, page)
    memory.unmap(unmapped(0, 2 * MAX_LEAVING), 10_000)
    assert memory.found(0, 1) == []
    assert memory.found((2 * MAX_LEAVING - 1) * PAGE, 1) == [b"\0"]


def test_memory_that_cannot_be_had_is_an_error(memory: ReplayMemory) -> None:
    with pytest.raises(TraceError, match="no memory of"):
        memory.map(DmaMap(0, 1 << 63, DmaMapFlags.READ, 1 << 63), None, 1)


def test_how_much_is_filled_is_looked_at_by_bytes_and_not_by_events(
    memory: ReplayMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_memory, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(replay_memory, "CHECK_EVERY", 1 << 20)
    for number in range(40):
        memory.map(region(BASE, 64), None, number)
    with pytest.raises(TraceError, match="guest memory"):
        memory.put(BASE, bytes(64 * PAGE))
    assert sum(os.fstat(file.fd).st_blocks * 512 for file in memory._open) < 3 << 20


def test_one_more_region_than_are_taken_is_an_error(
    memory: ReplayMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_memory, "MAX_REGIONS", 8)
    for number in range(8):
        memory.map(region(BASE + number * PAGE), FILE, number)
    with pytest.raises(TraceError, match="message 8 maps one more DMA region than the 8 that are taken"):
        memory.map(region(BASE + 8 * PAGE), FILE, 8)
