"""DMA_MAP and DMA_UNMAP through a socket: shapes, fds, pins, and what hostile clients send."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from structlog.typing import EventDict

from devices.contract import GuestMemoryError, GuestRange, PinnedPages, Prot
from protocol import (
    BitmapRequest,
    Capabilities,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
)
from server.client import RemoteError, VfioUserClient, open_client
from tests.fds import open_fds
from tests.server.register_device import PAGE, RegisterDevice
from tests.server.running import Server
from tests.server.transports.raw import error_of, greeted_client
from tests.server.transports.test_handshake import assert_served

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
TOP = 1 << 64


@contextmanager
def memfd(size: int, flags: int = os.MFD_ALLOW_SEALING) -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | flags)
    os.ftruncate(fd, size)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[VfioUserClient]:
    async with open_client(server.path) as client:
        yield client


async def refusal_of_map(
    client: VfioUserClient, address: int, size: int, *, fd: int | None = None, offset: int = 0
) -> int:
    before = open_fds()
    with pytest.raises(RemoteError) as refusal:
        await client.dma_map(address, size, fd=fd, offset=offset)
    assert open_fds() == before
    assert refusal.value.errno is not None
    return refusal.value.errno


async def test_the_device_sees_the_clients_memory(client: VfioUserClient, device: RegisterDevice) -> None:
    with memfd(4 * PAGE) as fd:
        os.pwrite(fd, b"from the client", 2 * PAGE)
        await client.dma_map(0x100000, 2 * PAGE, fd=fd, offset=2 * PAGE)
        view = device.attached.memory.view(0x100000, 15, Prot.READ)
        assert view is not None
        assert bytes(view) == b"from the client"
        writable = device.attached.memory.view(0x100000, 4, Prot.WRITE)
        assert writable is not None
        writable[:] = b"back"
        assert os.pread(fd, 4, 2 * PAGE) == b"back"


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0, 0),
        (0, 1),
        (1, PAGE),
        (PAGE // 2, PAGE),
        (0, PAGE + 1),
        (TOP - PAGE, 2 * PAGE),
        (TOP - 1, PAGE),
        (2 * PAGE, TOP - PAGE),
        (0, TOP - 1),
    ],
)
@pytest.mark.parametrize("with_fd", [True, False])
async def test_a_map_that_is_no_range_of_pages_is_refused(
    client: VfioUserClient, address: int, size: int, with_fd: bool
) -> None:
    with memfd(PAGE) as fd:
        assert await refusal_of_map(client, address, size, fd=fd if with_fd else None) == errno.EINVAL


async def test_a_map_may_end_at_the_top_of_the_address_space(client: VfioUserClient) -> None:
    with memfd(PAGE) as fd:
        await client.dma_map(TOP - PAGE, PAGE, fd=fd)
        await client.dma_unmap(TOP - PAGE, PAGE)


@pytest.mark.parametrize(("page", "pages"), [(4, 4), (2, 3), (7, 2), (5, 1), (0, 16)])
async def test_a_map_that_overlaps_another_is_refused(client: VfioUserClient, page: int, pages: int) -> None:
    with memfd(16 * PAGE) as fd:
        await client.dma_map(4 * PAGE, 4 * PAGE, fd=fd)
        assert await refusal_of_map(client, page * PAGE, pages * PAGE, fd=fd) == errno.EEXIST
        assert await refusal_of_map(client, page * PAGE, pages * PAGE) == errno.EEXIST
        await client.dma_map(8 * PAGE, PAGE, fd=fd)


async def test_a_file_that_is_shorter_than_promised_is_refused(client: VfioUserClient) -> None:
    with memfd(2 * PAGE) as fd:
        assert await refusal_of_map(client, 0, 3 * PAGE, fd=fd) == errno.EINVAL
        assert await refusal_of_map(client, 0, 2 * PAGE, fd=fd, offset=PAGE) == errno.EINVAL
        assert await refusal_of_map(client, 0, PAGE, fd=fd, offset=TOP - PAGE) == errno.EINVAL
        assert await refusal_of_map(client, 0, PAGE, fd=fd, offset=1) == errno.EINVAL
    with memfd(0) as fd:
        assert await refusal_of_map(client, 0, PAGE, fd=fd) == errno.EINVAL


async def test_a_file_cannot_be_shortened_once_it_is_mapped(client: VfioUserClient) -> None:
    with memfd(4 * PAGE) as fd:
        await client.dma_map(0, 4 * PAGE, fd=fd)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


async def test_a_file_that_cannot_be_sealed_is_mapped_and_its_pins_look_at_its_size(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    with memfd(4 * PAGE, flags=0) as fd:
        await client.dma_map(0, 4 * PAGE, fd=fd)
        os.ftruncate(fd, PAGE)
        with pytest.raises(OSError, match="truncated") as refusal:
            device.attached.memory.pin_pages([GuestRange(PAGE, PAGE)], Prot.READ, lambda _: None)
        assert refusal.value.errno == errno.EFAULT


async def test_an_fd_that_is_no_memory_is_refused(client: VfioUserClient) -> None:
    reader, writer = os.pipe()
    folder = os.open("/", os.O_RDONLY)
    null = os.open("/dev/zero", os.O_RDWR)
    for fd in (reader, writer, folder, null):
        assert await refusal_of_map(client, 0, PAGE, fd=fd) == errno.EINVAL
        os.close(fd)


async def test_two_fds_with_one_map_are_refused(server: Server) -> None:
    async with greeted_client(server.path) as client:
        with memfd(PAGE) as fd:
            before = open_fds()
            assert await client.refusal(DmaMap(0, PAGE, READ_WRITE), [fd, fd]) == errno.EINVAL
            assert open_fds() == before


@pytest.mark.parametrize("flags", [0, 8, 0xFFFFFFFF, DmaMapFlags.MAPPABLE])
async def test_permissions_that_cannot_be_are_refused(server: Server, flags: int) -> None:
    payload = struct.pack("=IIQQQ", 32, flags, 0, 0, PAGE)
    async with greeted_client(server.path) as client:
        with memfd(PAGE) as fd:
            before = open_fds()
            assert error_of(await client.ask_raw(Command.DMA_MAP, payload, [fd])) == errno.EINVAL
            assert open_fds() == before


async def test_unmapping_what_is_not_mapped_is_refused(client: VfioUserClient) -> None:
    with pytest.raises(RemoteError) as refusal:
        await client.dma_unmap(0, PAGE)
    assert refusal.value.errno == errno.ENOENT


@pytest.mark.parametrize(("address", "size"), [(0, 0), (1, PAGE), (0, PAGE - 1), (TOP - PAGE, 2 * PAGE)])
async def test_unmapping_what_is_no_range_of_pages_is_refused(
    client: VfioUserClient, address: int, size: int
) -> None:
    with pytest.raises(RemoteError) as refusal:
        await client.dma_unmap(address, size)
    assert refusal.value.errno == errno.EINVAL


async def test_unmapping_a_part_is_refused(client: VfioUserClient) -> None:
    await client.dma_map(0, 4 * PAGE)
    for address, size in ((0, PAGE), (PAGE, PAGE), (3 * PAGE, PAGE), (PAGE, 4 * PAGE)):
        with pytest.raises(RemoteError) as refusal:
            await client.dma_unmap(address, size)
        assert refusal.value.errno == errno.EINVAL
    await client.dma_unmap(0, 4 * PAGE)


async def test_unmapping_answers_with_what_was_asked(client: VfioUserClient) -> None:
    await client.dma_map(PAGE, PAGE)
    assert await client.dma_unmap(PAGE, PAGE) == DmaUnmapReply(PAGE, PAGE)


async def test_unmapping_all_leaves_nothing(client: VfioUserClient) -> None:
    for page in range(0, 20, 2):
        await client.dma_map(page * PAGE, PAGE)
    await client.dma_unmap_all()
    await client.dma_map(0, 64 * PAGE)
    await client.dma_unmap_all()
    await client.dma_unmap_all()


async def test_a_dirty_bitmap_without_dirty_tracking_is_refused(client: VfioUserClient) -> None:
    await client.dma_map(0, PAGE)
    with pytest.raises(RemoteError) as refusal:
        await client.dma_unmap(0, PAGE, bitmap=BitmapRequest(PAGE, 8))
    assert refusal.value.errno == errno.EINVAL
    await client.dma_unmap(0, PAGE)


@pytest.mark.parametrize("flags", [3, 4, 0x80000000])
async def test_flags_of_unmap_that_cannot_be_are_refused(server: Server, flags: int) -> None:
    async with greeted_client(server.path) as client:
        payload = struct.pack("=IIQQ", 24, flags, 0, PAGE)
        assert error_of(await client.ask_raw(Command.DMA_UNMAP, payload)) == errno.EINVAL


async def test_unmapping_all_with_an_address_is_refused(server: Server) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(DmaUnmap(PAGE, PAGE, DmaUnmapFlags.ALL)) == errno.EINVAL


async def test_unmapping_tells_the_holder_of_a_pin_before_it_is_answered(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    told: list[PinnedPages] = []
    with memfd(4 * PAGE) as fd:
        await client.dma_map(0, 4 * PAGE, fd=fd)
        pins = device.attached.memory.pin_pages([GuestRange(PAGE, PAGE)], Prot.READ, told.append)
        await client.dma_unmap(0, 4 * PAGE)
        assert told == [pins]
        with pytest.raises(GuestMemoryError):
            pins.views()


async def test_a_client_that_leaves_takes_its_memory_along(server: Server, device: RegisterDevice) -> None:
    with memfd(4 * PAGE) as fd:
        async with open_client(server.path) as client:
            await client.dma_map(0, 4 * PAGE, fd=fd)
        async with open_client(server.path):
            with pytest.raises(OSError, match="not mapped"):
                device.attached.memory.view(0, 4, Prot.READ)
    await assert_served(server)


async def test_many_maps_of_one_file_take_one_fd(client: VfioUserClient) -> None:
    with memfd(64 * PAGE) as fd:
        await client.dma_map(0, PAGE, fd=fd)
        before = open_fds()
        for page in range(1, 64):
            await client.dma_map(2 * page * PAGE, PAGE, fd=fd, offset=page * PAGE)
        assert open_fds() == before


async def test_more_maps_than_agreed_are_refused(server: Server) -> None:
    async with open_client(server.path, capabilities=Capabilities(max_dma_maps=3)) as client:
        assert client.agreement.max_dma_maps == 3
        for page in range(3):
            await client.dma_map(page * PAGE, PAGE)
        assert await refusal_of_map(client, 3 * PAGE, PAGE) == errno.ENOSPC
        await client.dma_unmap(0, PAGE)
        await client.dma_map(3 * PAGE, PAGE)


async def test_private_memory_is_warned_of_where_it_is_as_much_as_what_is_shared(
    client: VfioUserClient, log: list[EventDict]
) -> None:
    def warned() -> int:
        return sum(event["event"] == "memory_not_shared" for event in log)

    with memfd(4 * PAGE) as fd:
        await client.dma_map(0, 4 * PAGE, fd=fd)
    await client.dma_map(8 * PAGE, PAGE)  # such as another device's framebuffer
    assert warned() == 0
    await client.dma_map(16 * PAGE, 4 * PAGE)  # such as another NUMA node
    assert warned() == 1
