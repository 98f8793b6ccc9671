"""What runs inside the machine: a client shares memory over a socket, a device pins it, and an edu device reads it.

``python -m tests.guest.dma_proof type1|noiommu`` prints one JSON object: for each proof, "" or how it failed.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from ctypes import addressof, c_char
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from devices.contract import GuestRange, PinnedPages, Prot
from protocol import DmaMapFlags
from server.client import VfioUserClient, open_client
from server.dma.limits import PinLimits
from server.dma.pin import Pin
from server.native.serve import ConnectionOptions
from tests.guest.dma_engine import (
    PAGE,
    DmaEngine,
    compact_memory,
    dma_engine,
    iommu_group,
    move_away,
    physical_address,
)
from tests.guest.dma_model import the_core_agrees_with_its_model
from tests.guest.edu import find_edu
from tests.guest.virtual_gpu import serving
from tests.server.dma.support import READ, READ_WRITE, memfd, page_of
from tests.server.register_device import BAR0, RegisterDevice
from tests.server.running import running_server

PAGES = 64
SECONDS = 180.0


@dataclass
class Machine:
    """A client with ``PAGES`` pages of memory at guest address ``base``, a device that pins, and the edu device."""

    client: VfioUserClient
    device: RegisterDevice
    engine: DmaEngine
    fd: int
    base: int = 1 << 30

    @property
    def behind(self) -> int:
        """The guest address behind the memory."""
        return self.base + PAGES * PAGE

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


async def a_pinned_page_is_read_at_its_dma_addr(machine: Machine) -> None:
    with await machine.pin(7) as pins:
        assert await machine.engine.read(pins.segments[0].dma_addr) == page_of(7)


async def every_page_of_a_scatter_list_is_read_at_its_dma_addr(machine: Machine) -> None:
    numbers = (9, 3, 20, 4)
    with await machine.pin(*numbers) as pins:
        for number in numbers:
            dma_addr = pins.dma_addr(machine.base + number * PAGE)
            assert await machine.engine.read(dma_addr) == page_of(number)


async def what_the_device_writes_arrives_in_the_clients_memory(machine: Machine) -> None:
    with await machine.pin(30, prot=READ_WRITE) as target:
        await machine.engine.write(target.segments[0].dma_addr + 1024, b"written!" * 64)
    expected = page_of(30)[:1024] + b"written!" * 64 + page_of(30)[1536:]
    assert machine.guest_page(30) == expected


async def a_page_stays_until_its_last_pin_is_released(machine: Machine) -> None:
    first, second = await machine.pin(12), await machine.pin(12, 13)
    dma_addr = first.segments[0].dma_addr
    first.release()
    assert second.dma_addr(machine.base + 12 * PAGE) == dma_addr
    assert await machine.engine.read(dma_addr) == page_of(12)
    second.release()


async def scattered_pages_are_one_segment(machine: Machine) -> None:
    with await machine.pin(8, 2, 6) as pins:
        [segment] = pins.segments
        assert segment.length == 3 * PAGE
        assert await machine.engine.read(segment.dma_addr + PAGE) == page_of(2)


async def nothing_arrives_after_release(machine: Machine) -> None:
    with await machine.pin(15) as pins:
        dma_addr = pins.segments[0].dma_addr
        assert await machine.engine.read(dma_addr) == page_of(15)
    assert await machine.engine.fail_to_read(dma_addr) != page_of(15)


async def nothing_is_written_after_release(machine: Machine) -> None:
    written = b"written!" * (PAGE // 8)
    with await machine.pin(16, prot=READ_WRITE) as pins:
        dma_addr = pins.segments[0].dma_addr
        await machine.engine.write(dma_addr, written)
    assert machine.guest_page(16) == written
    os.pwrite(machine.fd, page_of(16), 16 * PAGE)
    await machine.engine.fail_to_write(dma_addr, written)
    assert machine.guest_page(16) == page_of(16)


async def what_the_client_lets_devices_only_read_is_not_written(machine: Machine) -> None:
    await machine.client.dma_map(machine.behind, PAGE, DmaMapFlags.READ, fd=machine.fd, offset=19 * PAGE)
    with await machine.pin(PAGES) as pins:
        dma_addr = pins.segments[0].dma_addr
        await machine.engine.fail_to_write(dma_addr, b"written!")
        assert machine.guest_page(19) == page_of(19)
        assert await machine.engine.read(dma_addr) == page_of(19)


async def nothing_arrives_after_the_client_has_unmapped_the_memory(machine: Machine) -> None:
    await machine.client.dma_map(machine.behind, PAGE, fd=machine.fd, offset=17 * PAGE)
    pins = await machine.pin(PAGES)
    dma_addr = pins.segments[0].dma_addr
    assert await machine.engine.read(dma_addr) == page_of(17)
    await machine.client.dma_unmap(machine.behind, PAGE)
    assert pins.revoked
    assert await machine.engine.fail_to_read(dma_addr) != page_of(17)


async def a_page_of_a_mapping_lingers_until_the_mapping_goes(machine: Machine) -> None:
    whole, part = await machine.pin(40, 41), await machine.pin(41)
    first, second = (whole.dma_addr(machine.base + number * PAGE) for number in (40, 41))
    whole.release()
    assert await machine.engine.read(second) == page_of(41)
    with await machine.pin(40) as again:
        assert again.segments[0].dma_addr == first
    part.release()
    for dma_addr in (first, second):
        assert await machine.engine.read(dma_addr) not in (page_of(40), page_of(41))


async def two_guest_addresses_of_a_page_have_its_one_physical_address(machine: Machine) -> None:
    await machine.client.dma_map(machine.behind, PAGE, fd=machine.fd, offset=18 * PAGE)
    one, other = await machine.pin(18), await machine.pin(PAGES)
    assert one.segments == other.segments
    one.release()
    check_immovable(other.segments[0].dma_addr)
    assert await machine.engine.read(other.segments[0].dma_addr) == page_of(18)
    await machine.client.dma_unmap(machine.behind, PAGE)


async def a_pinned_page_stays_where_it_is_and_others_are_moved(machine: Machine) -> None:
    with await machine.pin(51) as pins, mmap.mmap(machine.fd, PAGES * PAGE) as memory:
        dma_addr = pins.segments[0].dma_addr
        other = addressof(c_char.from_buffer(memory, 52 * PAGE))
        assert memory[52 * PAGE :][:PAGE] == page_of(52)
        compact_memory()
        before = physical_address(other)
        move_away(before)
        assert memory[52 * PAGE :][:PAGE] == page_of(52)
        assert physical_address(other) != before
        check_immovable(dma_addr)
        assert await machine.engine.read(dma_addr) == page_of(51)


async def a_page_stays_where_it_is_until_its_last_pin_is_released(machine: Machine) -> None:
    whole, part = await machine.pin(54, 55), await machine.pin(55)
    whole.release()
    check_immovable(part.segments[0].dma_addr)
    assert await machine.engine.read(part.segments[0].dma_addr) == page_of(55)
    part.release()


async def a_page_may_be_moved_once_it_is_released(machine: Machine) -> None:
    with await machine.pin(53) as pins:
        dma_addr = pins.segments[0].dma_addr
    compact_memory()
    move_away(dma_addr)
    with await machine.pin(53) as pins:
        assert pins.segments[0].dma_addr != dma_addr
        assert await machine.engine.read(pins.segments[0].dma_addr) == page_of(53)


def check_immovable(dma_addr: int) -> None:
    """The kernel cannot move the page at ``dma_addr``."""
    with pytest.raises(OSError, match="busy") as caught:
        move_away(dma_addr)
    assert caught.value.errno == errno.EBUSY


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
    what_the_client_lets_devices_only_read_is_not_written,
    nothing_arrives_after_the_client_has_unmapped_the_memory,
    a_page_of_a_mapping_lingers_until_the_mapping_goes,
)
WITHOUT = (
    *IN_BOTH,
    two_guest_addresses_of_a_page_have_its_one_physical_address,
    a_pinned_page_stays_where_it_is_and_others_are_moved,
    a_page_stays_where_it_is_until_its_last_pin_is_released,
    a_page_may_be_moved_once_it_is_released,
)
Proof = Callable[[Machine], Coroutine[object, object, None]]
PROOFS: dict[str, tuple[Proof, ...]] = {"type1": WITH_AN_IOMMU, "noiommu": WITHOUT}
MODEL = "the_core_agrees_with_its_model"
COMMAND = "the_command_serves_with_it"


@asynccontextmanager
async def machine(engine: DmaEngine) -> AsyncIterator[Machine]:
    """A server of a device, and a client that has mapped its memory."""
    device = RegisterDevice()
    options = ConnectionOptions(PinLimits(), engine.make_domain)
    fd = memfd(PAGES)
    try:
        async with running_server(device, options) as server, open_client(server.path) as client:
            result = Machine(client, device, engine, fd)
            await client.dma_map(result.base, PAGES * PAGE, fd=fd)
            yield result
    finally:
        os.close(fd)
        device.close()


async def the_command_serves_with_it(domain: str) -> None:
    group = () if domain == "noiommu" else ("--vfio-group", str(iommu_group(find_edu())))
    with TemporaryDirectory() as name:
        async with (
            serving(Path(name), "--dma-domain", domain, *group) as server,
            open_client(server.device) as client,
        ):
            with trio.fail_after(SECONDS):
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


async def prove(proof: Proof, engine: DmaEngine) -> None:
    with trio.fail_after(SECONDS):
        async with machine(engine) as prepared:
            await proof(prepared)


async def main(domain: str) -> None:
    # First, because the device's mapped registers keep its group from being opened again.
    outcomes = {COMMAND: await outcome(the_command_serves_with_it(domain))}
    with dma_engine(domain) as engine:
        for proof in PROOFS[domain]:
            outcomes[proof.__name__] = await outcome(prove(proof, engine))
        outcomes[MODEL] = await outcome(the_core_agrees_with_its_model(engine, domain))
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
