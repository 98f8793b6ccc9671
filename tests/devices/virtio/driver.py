"""A tiny virtio-pci driver for tests: does to registers and guest memory what a guest's driver does.

driver = VirtioDriver(VirtioPci(device), FakeHost())
driver.start()
replies = driver.send(0, [b"request"], [64])
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, pack_into, unpack_from

from devices.contract import Device
from devices.testing import FakeHost

CONFIG = 7
MSIX_IRQ = 2
COMMAND = 4
MEMORY_AND_BUS_MASTER = 6
STATUS_RESET = 0
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
INDIRECT_DESC, EVENT_IDX = 1 << 28, 1 << 29
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_VECTOR = 0xFFFF
DESCRIPTOR = Struct("<QIHH")

COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Structure:
    """Where a virtio structure lies: ``offset`` and ``length`` in BAR ``bar``; ``at`` is its capability."""

    at: int
    bar: int
    offset: int
    length: int


@dataclass
class Ring:
    """A virtqueue as the driver keeps it."""

    size: int
    notify: int
    descriptors: int
    available: int
    used: int
    available_index: int = 0
    used_index: int = 0

    @property
    def used_event(self) -> int:
        return self.available + 4 + 2 * self.size

    @property
    def avail_event(self) -> int:
        return self.used + 4 + 8 * self.size


class VirtioDriver:
    """Drives ``device`` through its regions, in the memory of ``host``.

    Buffers and rings come from :meth:`allocate`, a bump allocator that starts at ``heap`` in guest memory.
    """

    def __init__(
        self,
        device: Device,
        host: FakeHost,
        *,
        features: int | None = None,
        indirect: bool = False,
        msix: bool = True,
        queue_size: int | None = None,
        heap: int = 0x1000,
    ) -> None:
        self.device = device
        self.host = host
        self.indirect = indirect
        self.msix = msix
        self.queue_size = queue_size
        self.wanted = features
        self.features = 0
        self.rings: list[Ring] = []
        self.heap = host.memory.base + heap
        device.connect(host)
        self.structures = self.find_structures()

    # Registers

    def read(self, region: int, offset: int, count: int) -> int:
        data = self.device.region_read(region, offset, count)
        assert len(data) == count
        return int.from_bytes(data, "little")

    def write(self, region: int, offset: int, count: int, value: int) -> None:
        self.device.region_write(region, offset, memoryview(value.to_bytes(count, "little")))

    def capabilities(self) -> list[tuple[int, int]]:
        """``(offset, id)`` of every capability, following the list."""
        found: list[tuple[int, int]] = []
        at = self.read(CONFIG, 0x34, 1)
        while at:
            assert at not in [offset for offset, _ in found]
            found.append((at, self.read(CONFIG, at, 1)))
            at = self.read(CONFIG, at + 1, 1)
        return found

    def find_structures(self) -> dict[int, Structure]:
        found: dict[int, Structure] = {}
        for at, capability in self.capabilities():
            if capability == 9:
                kind = self.read(CONFIG, at + 3, 1)
                bar, offset, length = (self.read(CONFIG, at + o, n) for o, n in ((4, 1), (8, 4), (12, 4)))
                found.setdefault(kind, Structure(at, bar, offset, length))
        return found

    def read_common(self, offset: int, count: int) -> int:
        common = self.structures[COMMON_CFG]
        return self.read(common.bar, common.offset + offset, count)

    def write_common(self, offset: int, count: int, value: int) -> None:
        common = self.structures[COMMON_CFG]
        self.write(common.bar, common.offset + offset, count, value)

    def config_read(self, offset: int, count: int) -> bytes:
        """Read the device's own configuration."""
        config = self.structures[DEVICE_CFG]
        return self.device.region_read(config.bar, config.offset + offset, count)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write the device's own configuration."""
        config = self.structures[DEVICE_CFG]
        self.device.region_write(config.bar, config.offset + offset, memoryview(data))

    def read_isr(self) -> int:
        isr = self.structures[ISR_CFG]
        return self.read(isr.bar, isr.offset, 1)

    @property
    def status(self) -> int:
        return self.read_common(20, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write_common(20, 1, value)

    @property
    def needs_reset(self) -> bool:
        return bool(self.status & NEEDS_RESET)

    # Initialisation, step by step (virtio 1.3, 3.1.1)

    def start(self) -> VirtioDriver:
        """Bring the device up: all of it, from reset to DRIVER_OK."""
        self.write(CONFIG, COMMAND, 2, MEMORY_AND_BUS_MASTER)
        if self.msix:
            self.enable_msix()
        self.status = STATUS_RESET
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        self.negotiate()
        self.write_common(16, 2, 0)
        self.rings = [self.set_up_queue(index) for index in range(self.read_common(18, 2))]
        self.status |= DRIVER_OK
        return self

    def enable_msix(self) -> None:
        at = next(offset for offset, capability in self.capabilities() if capability == 0x11)
        self.write(CONFIG, at + 2, 2, 0x8000)

    def offered(self) -> int:
        features = 0
        for select in (0, 1):
            self.write_common(0, 4, select)
            features |= self.read_common(4, 4) << 32 * select
        return features

    def negotiate(self) -> None:
        """Accept what is offered, or of that what was asked for."""
        offered = self.offered()
        self.features = offered if self.wanted is None else offered & self.wanted
        self.accept(self.features)
        self.status |= FEATURES_OK
        assert self.status & FEATURES_OK

    def accept(self, features: int) -> None:
        for select in (0, 1):
            self.write_common(8, 4, select)
            self.write_common(12, 4, features >> 32 * select & 0xFFFFFFFF)

    def set_up_queue(self, index: int) -> Ring:
        self.write_common(22, 2, index)
        if self.queue_size is not None:
            self.write_common(24, 2, self.queue_size)
        size = self.read_common(24, 2)
        notify = self.structures[NOTIFY_CFG]
        multiplier = self.read(CONFIG, notify.at + 16, 4)
        ring = Ring(
            size,
            notify.offset + self.read_common(30, 2) * multiplier,
            self.allocate(16 * size, 4096),
            self.allocate(6 + 2 * size, 4096),
            self.allocate(6 + 8 * size, 4096),
        )
        for offset, address in ((32, ring.descriptors), (40, ring.available), (48, ring.used)):
            self.write_common(offset, 4, address & 0xFFFFFFFF)
            self.write_common(offset + 4, 4, address >> 32)
        if self.msix:
            self.write_common(26, 2, index + 1)
            assert self.read_common(26, 2) == index + 1
        self.write_common(28, 2, 1)
        return ring

    # Guest memory

    def allocate(self, length: int, alignment: int = 16) -> int:
        """Guest address of ``length`` fresh bytes."""
        address = -(-self.heap // alignment) * alignment
        self.heap = address + length
        assert self.heap <= self.host.memory.base + len(self.host.memory.data), "the test needs more memory"
        return address

    def poke(self, address: int, data: bytes) -> None:
        at = address - self.host.memory.base
        self.host.memory.data[at : at + len(data)] = data

    def peek(self, address: int, length: int) -> bytes:
        at = address - self.host.memory.base
        return bytes(self.host.memory.data[at : at + length])

    def store(self, data: bytes) -> int:
        """Guest address of a fresh copy of ``data``."""
        address = self.allocate(len(data))
        self.poke(address, data)
        return address

    def peek16(self, address: int) -> int:
        (value,) = unpack_from("<H", self.host.memory.data, address - self.host.memory.base)
        return int(value)

    def poke16(self, address: int, value: int) -> None:
        pack_into("<H", self.host.memory.data, address - self.host.memory.base, value & 0xFFFF)

    # Queues

    def send(self, queue: int, readable: list[bytes], writable_lengths: list[int]) -> list[bytes]:
        """Send one buffer, and give what the device wrote into each of its writable parts.

        A part that the device wrote only in part comes back as long as what was written.
        """
        heap = self.heap
        written, parts = self.exchange(queue, readable, writable_lengths)
        replies = []
        for address, length in parts:
            taken = min(length, written)
            replies.append(self.peek(address, taken))
            written -= taken
        self.heap = heap
        return replies

    def exchange(
        self, queue: int, readable: list[bytes], writable_lengths: list[int]
    ) -> tuple[int, list[tuple[int, int]]]:
        """Send one buffer; the bytes that the device says it wrote, and the writable parts."""
        sources = [(self.store(data), len(data)) for data in readable]
        targets = [(self.allocate(length), length) for length in writable_lengths]
        self.make_available(queue, self.describe(queue, sources, targets))
        self.kick(queue)
        used = self.collect(queue)
        assert len(used) == 1, f"the device used {len(used)} buffers"
        return used[0][1], targets

    def describe(
        self, queue: int, readable: list[tuple[int, int]], writable: list[tuple[int, int]], first: int = 0
    ) -> int:
        """Fill descriptors from ``first`` on (or an indirect table) and give the head of the chain."""
        parts = [(part, 0) for part in readable] + [(part, WRITE) for part in writable]
        if self.indirect:
            table = self.allocate(16 * len(parts))
            for index, ((address, length), flags) in enumerate(parts):
                last = index == len(parts) - 1
                self.put_descriptor(table, index, address, length, flags | (0 if last else NEXT), index + 1)
            self.put_descriptor(self.rings[queue].descriptors, first, table, 16 * len(parts), INDIRECT)
            return first
        for index, ((address, length), flags) in enumerate(parts, first):
            last = index == first + len(parts) - 1
            flags |= 0 if last else NEXT
            self.put_descriptor(self.rings[queue].descriptors, index, address, length, flags, index + 1)
        return first

    def put_descriptor(
        self, table: int, index: int, address: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        self.poke(table + 16 * index, DESCRIPTOR.pack(address, length, flags, following))

    def make_available(self, queue: int, head: int) -> None:
        ring = self.rings[queue]
        self.poke16(ring.available + 4 + 2 * (ring.available_index % ring.size), head)
        ring.available_index = (ring.available_index + 1) & 0xFFFF
        self.poke16(ring.available + 2, ring.available_index)

    def wants_kick(self, queue: int) -> bool:
        """Whether the device asked to hear of the newest buffer."""
        ring = self.rings[queue]
        if self.features & EVENT_IDX:
            return self.peek16(ring.avail_event) == (ring.available_index - 1) & 0xFFFF
        return not self.peek16(ring.used) & 1

    def kick(self, queue: int) -> None:
        """Notify the device, whether it wants to know or not."""
        self.write(self.structures[NOTIFY_CFG].bar, self.rings[queue].notify, 2, queue)

    def collect(self, queue: int) -> list[tuple[int, int]]:
        """``(head, bytes written)`` of what the device used since; asks for the next interrupt."""
        ring = self.rings[queue]
        used = []
        while ring.used_index != self.peek16(ring.used + 2):
            at = ring.used + 4 + 8 * (ring.used_index % ring.size) - self.host.memory.base
            head, written = unpack_from("<II", self.host.memory.data, at)
            used.append((head, written))
            ring.used_index = (ring.used_index + 1) & 0xFFFF
        if self.features & EVENT_IDX:
            self.poke16(ring.used_event, ring.used_index)
        return used
