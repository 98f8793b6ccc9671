"""Split virtqueues as the device sees them (virtio 1.3, section 2.7)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from devices.contract import GuestMemory, Prot
from devices.virtio.chain import Chain
from devices.virtio.constants import (
    AVAIL_NO_INTERRUPT,
    DESCRIPTOR_SIZE,
    EVENT_SIZE,
    MAX_QUEUE_SIZE,
    RING_HEADER_SIZE,
    USED_ELEMENT_SIZE,
    USED_NO_NOTIFY,
    DescriptorFlag,
    Feature,
)
from devices.virtio.device import MalformedRequest
from devices.virtio.ring_memory import RingPart

_U16 = Struct("<H")
_DESCRIPTOR = Struct("<QIHH")
_USED_ELEMENT = Struct("<II")
_FLAGS = 0
_INDEX = 2
_WRAP = 0xFFFF

# Plain integers: an operation on an IntFlag costs as much as the rest of a descriptor's handling.
_NEXT = int(DescriptorFlag.NEXT)
_WRITE = int(DescriptorFlag.WRITE)
_INDIRECT = int(DescriptorFlag.INDIRECT)


class RingLayout(NamedTuple):
    """What the driver programmed: entries, and the guest addresses of the three parts."""

    size: int
    descriptors: int
    available: int
    used: int


class Virtqueue:
    """A virtqueue in use.

    Call :meth:`open` at the start of each run of work and :meth:`close` at its end. The methods raise
    MalformedRequest where the driver broke the queue's rules, GuestMemoryError where its memory is missing.
    """

    def __init__(self, layout: RingLayout, features: int) -> None:
        size = layout.size
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise MalformedRequest(f"a queue of {size} entries")
        self.size = size
        self._event_index = bool(features & Feature.RING_EVENT_IDX)
        self._indirect = bool(features & Feature.RING_INDIRECT_DESC)
        self._used_event = RING_HEADER_SIZE + size * _U16.size
        self._avail_event = RING_HEADER_SIZE + size * USED_ELEMENT_SIZE
        self._table = RingPart(layout.descriptors, size * DESCRIPTOR_SIZE, Prot.READ)
        self._available = RingPart(layout.available, self._used_event + EVENT_SIZE, Prot.READ)
        self._used = RingPart(layout.used, self._avail_event + EVENT_SIZE, Prot.WRITE)
        self._memory: GuestMemory | None = None
        self._next = 0
        self._seen = 0
        self._used_index = 0
        self._signalled = 0
        self._wants_kicks = True

    def open(self, memory: GuestMemory) -> None:
        """Start a run of work on ``memory``."""
        self._memory = memory
        self._table.open(memory)
        self._available.open(memory)
        self._used.open(memory)

    def close(self) -> None:
        """End a run of work: keep no view."""
        self._table.close()
        self._available.close()
        self._used.close()

    def release(self) -> None:
        """Let go of the guest's memory; the next :meth:`open` takes it again."""
        self._memory = None
        self._table.release()
        self._available.release()
        self._used.release()

    async def has_more(self) -> bool:
        """Whether a buffer waits. Raises MalformedRequest where the driver's index ran away."""
        if self._seen == self._next:
            (self._seen,) = await self._available.load(_INDEX, _U16)
            if (self._seen - self._next) & _WRAP > self.size:
                raise MalformedRequest(f"the available index {self._seen} is far ahead of {self._next}")
        return self._seen != self._next

    async def pop(self) -> Chain | None:
        """The next buffer that the driver made available, or None."""
        if not await self.has_more() or self._memory is None:
            return None
        slot = self._next % self.size
        (head,) = await self._available.load(RING_HEADER_SIZE + slot * _U16.size, _U16)
        if head >= self.size:
            raise MalformedRequest(f"descriptor {head} of {self.size} made available")
        chain = Chain(head, self._memory)
        await self._collect(chain, self._memory)
        self._next = (self._next + 1) & _WRAP
        return chain

    def put_back(self) -> None:
        """Undo the last :meth:`pop`, whose buffer was not served."""
        self._next = (self._next - 1) & _WRAP

    async def push(self, head: int, written: int) -> None:
        """Give the buffer ``head`` back with ``written`` bytes in it, visible to the driver at once."""
        slot = self._used_index % self.size
        await self._used.store(RING_HEADER_SIZE + slot * USED_ELEMENT_SIZE, _USED_ELEMENT, head, written)
        self._used_index = (self._used_index + 1) & _WRAP
        await self._used.store_half(_INDEX, self._used_index)

    async def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call (2.7.7, 2.7.10)."""
        since, self._signalled = self._signalled, self._used_index
        if since == self._used_index:
            return False
        if not self._event_index:
            (flags,) = await self._available.load(_FLAGS, _U16)
            return not flags & AVAIL_NO_INTERRUPT
        (event,) = await self._available.load(self._used_event, _U16)
        return (self._used_index - event - 1) & _WRAP < (self._used_index - since) & _WRAP

    async def hush(self) -> None:
        """Ask the driver not to kick while its buffers are being served anyway."""
        # With event indexes the stale index that is there does it.
        if not self._event_index and self._wants_kicks:
            self._wants_kicks = False
            await self._used.store_half(_FLAGS, USED_NO_NOTIFY)

    async def listen(self) -> bool:
        """Ask for a kick at the next buffer; True where one has come in the meantime and no kick will."""
        if self._event_index:
            await self._used.store_half(self._avail_event, self._next)
        elif not self._wants_kicks:
            self._wants_kicks = True
            await self._used.store_half(_FLAGS, 0)
        return await self.has_more()

    async def _collect(self, chain: Chain, memory: GuestMemory) -> None:
        index = chain.head
        for _ in range(self.size):
            address, length, flags, following = await self._table.load(index * DESCRIPTOR_SIZE, _DESCRIPTOR)
            if flags & _INDIRECT:
                await self._collect_indirect(chain, memory, address, length, flags)
                return
            chain.add(address, length, bool(flags & _WRITE))
            if not flags & _NEXT:
                return
            if following >= self.size:
                raise MalformedRequest(f"descriptor {index} continues at {following} of {self.size}")
            index = following
        raise MalformedRequest(f"the chain from descriptor {chain.head} loops")

    async def _collect_indirect(
        self, chain: Chain, memory: GuestMemory, address: int, length: int, flags: int
    ) -> None:
        if not self._indirect:
            raise MalformedRequest("an indirect descriptor without VIRTIO_F_INDIRECT_DESC")
        if flags & _NEXT:
            raise MalformedRequest("an indirect descriptor continues")
        count, odd = divmod(length, DESCRIPTOR_SIZE)
        if odd or not 0 < count <= MAX_QUEUE_SIZE:
            raise MalformedRequest(f"an indirect table of {length} bytes")
        table = await memory.read(address, length)
        index = 0
        for _ in range(count):
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, index * DESCRIPTOR_SIZE)
            if flags & _INDIRECT:
                raise MalformedRequest("an indirect descriptor in an indirect table")
            chain.add(address, length, bool(flags & _WRITE))
            if not flags & _NEXT:
                return
            if following >= count:
                raise MalformedRequest(f"indirect descriptor {index} continues at {following} of {count}")
            index = following
        raise MalformedRequest(f"the indirect table of descriptor {chain.head} loops")
