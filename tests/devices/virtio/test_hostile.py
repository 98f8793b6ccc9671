"""Nothing that a guest writes into registers or memory may raise in the server."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio.device import DescriptorChain
from devices.virtio.pci import VirtioPci
from tests.devices.virtio.driver import VirtioDriver
from tests.devices.virtio.echo import EchoDevice
from tests.devices.virtio.step_host import StepHost

REGION_SIZES = {1: 4096, 4: 16384, 7: 256}
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 0x10, 0x1000, 0x2000, 0x3000, 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1)


class Checker(EchoDevice):
    """Finds out whether a chain keeps the promises that devices rely on."""

    async def handle(self, queue: int, chain: DescriptorChain) -> int:
        assert chain.readable_length == sum(length for _, length in chain.readable) <= 1 << 32
        assert chain.writable_length == sum(length for _, length in chain.writable) <= 1 << 32
        assert all(length for _, length in (*chain.readable, *chain.writable))
        self.handled.append((queue, b""))
        return min(len(self.handled), chain.writable_length)


def faults(host: StepHost) -> list[object]:
    """The transport reports what it did not expect as a fault of the device."""
    return [fields for _, event, fields in host.log.events if event == "device_fault"]


accesses = st.tuples(
    st.sampled_from(sorted(REGION_SIZES)),
    st.integers(0, 16383) | st.integers(0, 64) | st.sampled_from([0x1000, 0x2000, 0x3000, 0x3004]),
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16]),
    st.sampled_from(INTERESTING) | st.integers(0, (1 << 128) - 1),
    st.integers(0, 3),
)


@settings(max_examples=150, deadline=None)
@given(writes=st.lists(accesses, max_size=40), shared=st.booleans(), started=st.booleans())
def test_no_register_access_raises(
    writes: list[tuple[int, int, int, int, int]], shared: bool, started: bool
) -> None:
    host = StepHost(1 << 17, shared=shared)
    pci = VirtioPci(Checker())
    driver = VirtioDriver(pci, host)
    if started:
        driver.start()
    for region, offset, count, value, steps in writes:
        offset = min(offset % REGION_SIZES[region], REGION_SIZES[region] - count)
        data = value.to_bytes(16, "little")[:count]
        pci.region_write(region, offset, memoryview(data))
        assert len(pci.region_read(region, offset, count)) == count
        for _ in range(min(steps, len(host.waiting))):
            if host.waiting:
                host.step()
    host.run()
    assert faults(host) == []


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    density=st.sampled_from([0.02, 0.2, 1.0]),
    shared=st.booleans(),
    kicks=st.integers(1, 6),
)
def test_garbage_in_the_rings_never_raises(seed: int, density: float, shared: bool, kicks: int) -> None:
    random = Random(seed)  # noqa: S311
    host = StepHost(1 << 17, shared=shared)
    driver = VirtioDriver(VirtioPci(Checker()), host).start()
    for _ in range(kicks):
        for ring in driver.rings:
            for base, length in ((ring.descriptors, 128), (ring.available, 22)):
                for at in range(base, base + length, 2):
                    if random.random() < density:
                        driver.poke16(at, random.choice((*INTERESTING[:9], random.getrandbits(16))))
            driver.poke16(ring.available + 2, ring.available_index + random.randrange(ring.size + 2))
        driver.kick(0)
        driver.kick(1)
        host.run()
    assert faults(host) == []
    driver.status = 0
    assert host.memory.pins == []
