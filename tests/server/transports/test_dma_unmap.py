"""A DMA_UNMAP waits for a device that cannot let go at once, but not for ever."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
import trio.testing
from structlog.typing import EventDict

from devices import work
from devices.contract import GuestMemory, GuestMemoryError, GuestRange, PinnedPages, Prot
from protocol import TwinSocket
from server.client import VfioUserClient, open_client
from server.client.client import CAPABILITIES
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import Server

Clock = trio.testing.MockClock


@pytest.fixture
async def client(server: Server) -> AsyncIterator[VfioUserClient]:
    async with open_client(server.path) as client:
        yield client


class Zeros:
    """A client's memory that is all zeros."""

    def read(self, address: int, count: int) -> bytes:
        return bytes(count)

    def write(self, address: int, data: bytes) -> None:
        """Forget it."""


class Holder:
    """A device that pins the client's page at one register, and asks for time when it is taken away."""

    def __init__(self, device: RegisterDevice) -> None:
        self.device = device
        self.pins: list[PinnedPages] = []
        self.told = trio.Event()
        device.on_write[0] = self.pin
        device.on_write[4] = self.defer_release

    @property
    def memory(self) -> GuestMemory:
        assert self.device.host is not None
        return self.device.host.memory

    def pin(self, _: bytes) -> None:
        self.pins.append(self.memory.pin_pages([GuestRange(0, PAGE)], Prot.READ, self.unmapped))

    def unmapped(self, _: PinnedPages) -> bool:
        self.told.set()
        return True

    def defer_release(self, _: bytes) -> None:
        assert self.device.host is not None
        self.device.host.defer(self.release_when_told())

    async def release_when_told(self) -> None:
        while not self.told.is_set():
            await work.pause()
        self.pins[0].release()


async def share(client: VfioUserClient, device: RegisterDevice) -> Holder:
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    await client.dma_map(0, PAGE, fd=fd)
    os.close(fd)
    holder = Holder(device)
    await client.region_write(BAR0, 0, b"pin!")
    return holder


@pytest.fixture
async def holder(client: VfioUserClient, device: RegisterDevice) -> Holder:
    return await share(client, device)


def warnings(log: list[EventDict]) -> list[str]:
    return [event["event"] for event in log if event["log_level"] == "warning"]


async def test_the_reply_comes_when_the_device_has_let_go(
    client: VfioUserClient, holder: Holder, log: list[EventDict], autojump_clock: Clock
) -> None:
    done = trio.Event()

    async def unmap() -> None:
        await client.dma_unmap(0, PAGE)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unmap)
        await holder.told.wait()
        await trio.sleep(1)
        assert not done.is_set()
        assert not holder.pins[0].revoked
        holder.pins[0].release()
        await done.wait()
    assert warnings(log) == []


async def test_what_is_still_held_after_the_time_is_revoked(
    client: VfioUserClient, holder: Holder, log: list[EventDict], autojump_clock: Clock
) -> None:
    began = trio.current_time()
    await client.dma_unmap(0, PAGE)
    assert trio.current_time() - began < 5
    assert holder.pins[0].revoked
    assert warnings(log) == ["unmap_timed_out", "pin_revoked"]


async def test_deferred_work_goes_on_and_may_be_what_lets_go(
    client: VfioUserClient, holder: Holder, log: list[EventDict], autojump_clock: Clock
) -> None:
    await client.region_write(BAR0, 4, b"rel!")
    await client.dma_unmap(0, PAGE)
    assert holder.pins[0].revoked
    assert warnings(log) == []


@pytest.mark.parametrize("twin", [False, True])
async def test_work_that_waits_for_the_clients_answer_may_be_what_lets_go(
    server: Server, device: RegisterDevice, log: list[EventDict], twin: bool, autojump_clock: Clock
) -> None:
    """The answer comes on the socket that the unmap came on, or on one of its own."""
    holder: Holder

    async def read_and_release() -> None:
        while not holder.told.is_set():
            await work.pause()
        await holder.memory.read(1 << 20, 16)
        holder.pins[0].release()

    def defer(_: bytes) -> None:
        assert device.host is not None
        device.host.defer(read_and_release())

    capabilities = replace(CAPABILITIES, twin_socket=TwinSocket(supported=True) if twin else None)
    async with open_client(server.path, memory=Zeros(), capabilities=capabilities) as client:
        holder = await share(client, device)
        await client.dma_map(1 << 20, PAGE)
        device.on_write[8] = defer
        await client.region_write(BAR0, 8, b"read")
        await client.dma_unmap(0, PAGE)
    assert warnings(log) == ["memory_not_shared"]


async def test_a_client_that_hangs_up_during_the_wait_waits_no_longer(
    server: Server, device: RegisterDevice, autojump_clock: Clock
) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery, open_client(server.path) as client:
        holder = await share(client, device)
        nursery.start_soon(client.dma_unmap, 0, PAGE)
        await holder.told.wait()
        nursery.cancel_scope.cancel()
    async with open_client(server.path) as other:
        await other.region_read(BAR0, 0, 4)
    assert trio.current_time() == began
    assert holder.pins[0].revoked


async def test_a_handle_that_is_dropped_during_the_wait_is_a_leak_and_no_time_out(
    client: VfioUserClient, holder: Holder, log: list[EventDict], autojump_clock: Clock
) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.dma_unmap, 0, PAGE)
        await holder.told.wait()
        holder.pins.clear()
    assert trio.current_time() == began
    assert warnings(log) == ["pin_leaked"]


async def test_what_the_client_asks_next_waits_for_the_unmap(
    client: VfioUserClient, holder: Holder, autojump_clock: Clock
) -> None:
    """A page that comes back while its old pin is held must not be the old page."""
    fd = os.memfd_create("other")
    os.pwrite(fd, b"new", 0)
    os.ftruncate(fd, PAGE)

    async def map_again() -> None:
        await client.dma_map(0, PAGE, fd=fd)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.dma_unmap, 0, PAGE)
        await holder.told.wait()
        nursery.start_soon(map_again)
        await trio.sleep(1)
        with pytest.raises(GuestMemoryError):
            holder.pin(b"")
        holder.pins[0].release()
    holder.pin(b"")
    assert bytes(holder.pins[1].views()[0][:3]) == b"new"
    holder.pins[1].release()
    os.close(fd)


async def test_a_client_that_leaves_waits_for_nobody(
    server: Server, device: RegisterDevice, autojump_clock: Clock
) -> None:
    began = trio.current_time()
    async with open_client(server.path) as client:
        holder = await share(client, device)
    async with open_client(server.path) as other:
        await other.region_read(BAR0, 0, 4)
    assert trio.current_time() == began
    assert holder.pins[0].revoked


async def test_a_reset_takes_what_the_device_keeps(
    client: VfioUserClient, holder: Holder, log: list[EventDict]
) -> None:
    await client.reset()
    assert holder.pins[0].revoked
    assert warnings(log) == ["pin_revoked"]
    with pytest.raises(GuestMemoryError) as caught:
        holder.pins[0].views()
    assert caught.value.errno == errno.EINVAL
