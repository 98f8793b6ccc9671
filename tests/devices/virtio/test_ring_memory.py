"""What a driver sees of a ring while the device writes to it."""

from __future__ import annotations

import mmap
import os

import pytest

from devices.contract import Prot
from devices.testing import FakeMemory
from devices.virtio.ring_memory import RingPart
from devices.work import run_to_completion

SIZE = 4096
STORES = 200_000
OLD, NEW = 0x00FF, 0x0100


def test_an_index_is_old_or_new_and_nothing_in_between() -> None:
    """A process of its own reads, as a guest does: threads of this one would never see a call half done."""
    memory = FakeMemory(SIZE)
    shared = mmap.mmap(-1, SIZE)
    memory.data = shared  # type: ignore[assignment]  # memory that the other process sees, too
    part = RingPart(0, SIZE, Prot.WRITE)
    part.open(memory)
    run_to_completion(part.store_half(2, OLD))
    reader = os.fork()
    if reader == 0:
        halves = memoryview(shared).cast("H")
        wrong = 0
        while not halves[100]:
            wrong += halves[1] not in (OLD, NEW)
        os._exit(wrong > 0)
    for number in range(STORES):
        run_to_completion(part.store_half(2, NEW if number % 2 else OLD))
    run_to_completion(part.store_half(200, 1))
    assert os.waitpid(reader, 0)[1] == 0
    part.release()
    memory.data = bytearray()


@pytest.mark.parametrize("shared", [True, False])
def test_an_index_is_little_endian(shared: bool) -> None:
    memory = FakeMemory(SIZE, shared=True)
    memory.observed = not shared  # then the ring is written by copies
    part = RingPart(8, 64, Prot.WRITE)
    part.open(memory)
    run_to_completion(part.store_half(4, 0x1234))
    assert memory.data[12:14] == b"\x34\x12"
