"""What runs inside the machine: a client shares memory over a socket, a device pins it, and an edu device reads it.

``python -m tests.guest.dma_proof type1|noiommu`` prints one JSON object: for each proof, "" or how it failed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from devices.contract import GuestRange, PinnedPages, Prot
from server.client import VfioUserClient, open_client
from server.dma.domain import DmaDomain
from server.dma.domains.noiommu import NoIommuDomain
from server.dma.domains.type1 import Type1Domain
from server.dma.domains.vfio import VfioContainer
from server.dma.limits import PinLimits
from server.dma.pin import Pin
from server.native.serve import ConnectionOptions
from tests.guest.edu import BUFFER_BYTES, PCI_DEVICES, Edu, edu_of_sysfs, edu_of_vfio, find_edu
from tests.guest.virtual_gpu import serving
from tests.server.dma.memory_model import RETAIN, SETTINGS, MemoryModel
from tests.server.dma.support import READ, READ_WRITE, memfd, page_of
from tests.server.register_device import BAR0, RegisterDevice
from tests.server.running import running_server

PAGE = BUFFER_BYTES
PAGES = 64
LAST = PAGES - 1
DMA_BITS = 28
"""QEMU's edu device takes no more unless it is told to, and then 32."""


@dataclass
class Machine:
    """A client with ``PAGES`` pages of memory at guest address ``base``, a device that pins, and the edu device."""

    client: VfioUserClient
    device: RegisterDevice
    edu: Edu
    fd: int
    base: int = 1 << 30
    last_page: int = 0
    """The dma_addr of page :data:`LAST`, which stays pinned: an address that is released goes to no page again."""

    async def pin(self, *pages: int, prot: Prot = READ) -> Pin:
        """Have the device pin single pages, at a write of the client to a register."""
        ranges = [GuestRange(self.base + page * PAGE, PAGE) for page in pages]
        pins: list[PinnedPages] = []

        def pin(_: bytes) -> None:
            assert self.device.host is not None
            pins.append(self.device.host.memory.pin_pages(ranges, prot, lambda _: None))

        self.device.on_write[0] = pin
        await self.client.region_write(BAR0, 0, b"pin!")
        assert isinstance(pins[0], Pin)
        return pins[0]

    def guest_page(self, number: int) -> bytes:
        """What is in the guest's memory now."""
        return os.pread(self.fd, PAGE, number * PAGE)

    async def arrived(self, dma_addr: int) -> bytes:
        """The page that the edu device finds at ``dma_addr``: through its buffer, back to the guest's last page."""
        os.pwrite(self.fd, b"\xa5" * PAGE, LAST * PAGE)
        await self.edu.take(self.last_page, PAGE)  # so that nothing older is in the buffer
        await self.edu.take(dma_addr, PAGE)
        await self.edu.give(self.last_page, PAGE)
        return self.guest_page(LAST)


async def a_pinned_page_is_read_at_its_dma_addr(machine: Machine) -> None:
    with await machine.pin(7) as pins:
        assert await machine.arrived(pins.segments[0].dma_addr) == page_of(7)


async def every_page_of_a_scatter_list_is_read_at_its_dma_addr(machine: Machine) -> None:
    numbers = (9, 3, 20, 4)
    with await machine.pin(*numbers) as pins:
        for number in numbers:
            dma_addr = pins.dma_addr(machine.base + number * PAGE)
            assert await machine.arrived(dma_addr) == page_of(number)


async def what_the_device_writes_arrives_in_the_clients_memory(machine: Machine) -> None:
    with await machine.pin(11) as source, await machine.pin(30, prot=READ_WRITE) as target:
        await machine.edu.take(source.segments[0].dma_addr, PAGE)
        await machine.edu.give(target.segments[0].dma_addr + 1024, 512)
    expected = page_of(30)[:1024] + page_of(11)[:512] + page_of(30)[1536:]
    assert machine.guest_page(30) == expected


async def a_page_stays_until_its_last_pin_is_released(machine: Machine) -> None:
    first, second = await machine.pin(12), await machine.pin(12, 13)
    dma_addr = first.segments[0].dma_addr
    first.release()
    assert second.dma_addr(machine.base + 12 * PAGE) == dma_addr
    assert await machine.arrived(dma_addr) == page_of(12)
    second.release()


async def scattered_pages_are_one_segment(machine: Machine) -> None:
    with await machine.pin(8, 2, 6) as pins:
        [segment] = pins.segments
        assert segment.length == 3 * PAGE
        assert await machine.arrived(segment.dma_addr + PAGE) == page_of(2)


async def nothing_arrives_after_release(machine: Machine) -> None:
    with await machine.pin(15) as pins:
        dma_addr = pins.segments[0].dma_addr
        assert await machine.arrived(dma_addr) == page_of(15)
    with faults_at(dma_addr):
        assert await machine.arrived(dma_addr) != page_of(15)


async def nothing_is_written_after_release(machine: Machine) -> None:
    with await machine.pin(16, prot=READ_WRITE) as pins:
        dma_addr = pins.segments[0].dma_addr
        await machine.arrived(dma_addr)
    with faults_at(dma_addr):
        await machine.edu.give(dma_addr, PAGE)
    assert machine.guest_page(16) == page_of(16)


async def nothing_arrives_after_the_client_has_unmapped_the_memory(machine: Machine) -> None:
    address = machine.base + PAGES * PAGE
    await machine.client.dma_map(address, PAGE, fd=machine.fd, offset=17 * PAGE)
    pins = await machine.pin(PAGES)
    dma_addr = pins.segments[0].dma_addr
    assert await machine.arrived(dma_addr) == page_of(17)
    await machine.client.dma_unmap(address, PAGE)
    assert pins.revoked
    with faults_at(dma_addr):
        assert await machine.arrived(dma_addr) != page_of(17)


async def a_page_of_a_mapping_lingers_until_the_mapping_goes(machine: Machine) -> None:
    whole, part = await machine.pin(40, 41), await machine.pin(41)
    first, second = (whole.dma_addr(machine.base + number * PAGE) for number in (40, 41))
    whole.release()
    assert await machine.arrived(second) == page_of(41)
    with await machine.pin(40) as again:
        assert again.segments[0].dma_addr == first
    part.release()
    for dma_addr in (first, second):
        assert await machine.arrived(dma_addr) not in (page_of(40), page_of(41))


async def two_guest_addresses_of_a_page_have_its_one_physical_address(machine: Machine) -> None:
    address = machine.base + PAGES * PAGE
    await machine.client.dma_map(address, PAGE, fd=machine.fd, offset=18 * PAGE)
    one, other = await machine.pin(18), await machine.pin(PAGES)
    assert one.segments == other.segments
    one.release()
    assert await machine.arrived(other.segments[0].dma_addr) == page_of(18)
    await machine.client.dma_unmap(address, PAGE)


async def a_pinned_page_stays_where_it_is_when_memory_is_compacted(machine: Machine) -> None:
    numbers = range(32)
    with await machine.pin(*numbers) as pins:
        for _ in range(3):
            compact_memory()
        for number in (0, 13, 31):
            dma_addr = pins.dma_addr(machine.base + number * PAGE)
            assert await machine.arrived(dma_addr) == page_of(number)


IN_BOTH = (
    a_pinned_page_is_read_at_its_dma_addr,
    every_page_of_a_scatter_list_is_read_at_its_dma_addr,
    what_the_device_writes_arrives_in_the_clients_memory,
    a_page_stays_until_its_last_pin_is_released,
)
WITH_AN_IOMMU = (
    *IN_BOTH,
    scattered_pages_are_one_segment,
    nothing_arrives_after_release,
    nothing_is_written_after_release,
    nothing_arrives_after_the_client_has_unmapped_the_memory,
    a_page_of_a_mapping_lingers_until_the_mapping_goes,
)
WITHOUT = (
    *IN_BOTH,
    two_guest_addresses_of_a_page_have_its_one_physical_address,
    a_pinned_page_stays_where_it_is_when_memory_is_compacted,
)
Proof = Callable[[Machine], Coroutine[object, object, None]]
PROOFS: dict[str, tuple[Proof, ...]] = {"type1": WITH_AN_IOMMU, "noiommu": WITHOUT}
MODEL = "the_core_agrees_with_its_model"
COMMAND = "the_command_serves_with_it"


def compact_memory() -> None:
    """Have the kernel move all that may be moved (Documentation/admin-guide/sysctl/vm.rst)."""
    Path("/proc/sys/vm/compact_memory").write_text("1")


@contextmanager
def faults_at(dma_addr: int) -> Iterator[None]:
    """The kernel logs a fault of the IOMMU at ``dma_addr`` while the block runs."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield
        lines = []
        with_fault = f"fault addr {dma_addr:#x}"
        while True:
            try:
                lines.append(os.read(log, 8192).decode(errors="replace"))
            except BlockingIOError:
                break
        assert any("DMAR" in line and with_fault in line for line in lines), (with_fault, lines)
    finally:
        os.close(log)


def iommu_group(name: str) -> int:
    """The IOMMU group of a device."""
    return int((PCI_DEVICES / name / "iommu_group").readlink().name)


@contextmanager
def engine(domain: str) -> Iterator[tuple[Edu, Callable[[], DmaDomain]]]:
    """The edu device, and what makes DMA domains for it."""
    name = find_edu()
    if domain == "noiommu":
        with edu_of_sysfs(name) as edu:
            yield edu, NoIommuDomain
        return
    container = VfioContainer.open(iommu_group(name))
    fd = container.device(name)
    try:
        with edu_of_vfio(fd) as edu:
            yield edu, lambda: Type1Domain(container, DMA_BITS)
    finally:
        os.close(fd)
        container.close()


@asynccontextmanager
async def machine(edu: Edu, make_domain: Callable[[], DmaDomain]) -> AsyncIterator[Machine]:
    """A server of a device, and a client that has mapped its memory."""
    device = RegisterDevice()
    options = ConnectionOptions(PinLimits(), make_domain)
    fd = memfd(PAGES)
    try:
        async with running_server(device, options) as server, open_client(server.path) as client:
            result = Machine(client, device, edu, fd)
            await client.dma_map(result.base, PAGES * PAGE, fd=fd)
            with await result.pin(LAST, prot=READ_WRITE) as target:
                result.last_page = target.segments[0].dma_addr
                yield result
    finally:
        os.close(fd)
        device.close()


async def the_core_agrees_with_its_model(make_domain: Callable[[], DmaDomain], domain: str) -> None:
    class Model(MemoryModel):
        retain = RETAIN
        collide = domain == "noiommu"

        def make_domain(self) -> DmaDomain:
            return make_domain()

    run_state_machine_as_test(Model, settings=settings(SETTINGS, max_examples=8, database=None))


async def the_command_serves_with_it(domain: str) -> None:
    group = () if domain == "noiommu" else ("--vfio-group", str(iommu_group(find_edu())))
    with TemporaryDirectory() as name:
        async with (
            serving(Path(name), "--dma-domain", domain, *group) as server,
            open_client(server.device) as client,
        ):
            with trio.fail_after(60):
                fd = memfd(PAGES)
                await client.dma_map(0, PAGES * PAGE, fd=fd)
                os.close(fd)
                memory = (await server.status())["client"]["memory"]
    assert memory["domain"] == domain
    assert memory["locked_limit"] is None  # root may lock what it likes


async def outcome(proof: Awaitable[None]) -> str:
    try:
        await proof
    except BaseException:
        return traceback.format_exc()
    return ""


async def prove(proof: Proof, edu: Edu, make_domain: Callable[[], DmaDomain]) -> None:
    with trio.fail_after(60):
        async with machine(edu, make_domain) as prepared:
            await proof(prepared)


async def main(domain: str) -> None:
    # First, because the device's mapped registers keep its group from being opened again.
    outcomes = {COMMAND: await outcome(the_command_serves_with_it(domain))}
    with engine(domain) as (edu, make_domain):
        for proof in PROOFS[domain]:
            outcomes[proof.__name__] = await outcome(prove(proof, edu, make_domain))
        outcomes[MODEL] = await outcome(the_core_agrees_with_its_model(make_domain, domain))
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
