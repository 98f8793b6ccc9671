"""Regions through a socket: what they are, reads and writes of every size, and their bounds."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import AsyncIterator

import pytest
from structlog.typing import EventDict

from devices.models import MODELS
from devices.registry import create_device
from protocol import (
    Command,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    Feature,
    FeatureFlags,
    GetInfo,
    GetRegionInfo,
    GetRegionIoFds,
    MigDataRead,
    MigDataWrite,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SparseArea,
    SparseMmap,
)
from server.client import RemoteError, VfioUserClient, open_client
from server.fds import ReceivedFds
from server.native.connection import SHORT_DATA
from server.native.handlers import MAX_DATA_XFER_SIZE
from server.native.serve import ConnectionOptions
from tests.server.register_device import (
    AREAS,
    BAR0,
    BAR1,
    BAR2,
    BAR3,
    BAR4,
    BAR5,
    BIG_SIZE,
    CONFIG,
    PAGE,
    RegisterDevice,
)
from tests.server.running import Server, running_server
from tests.server.transports.raw import error_of, greeted_client

AREA_FIELDS = [(area.offset, area.length) for area in AREAS]
READ_WRITE = RegionFlags.READ | RegionFlags.WRITE


@pytest.fixture
async def client(server: Server) -> AsyncIterator[VfioUserClient]:
    async with open_client(server.path) as client:
        yield client


async def test_the_device_says_what_it_is(client: VfioUserClient) -> None:
    assert await client.get_info() == DeviceInfo(DeviceFlags.PCI | DeviceFlags.RESET, 9, 5)


@pytest.mark.parametrize(
    ("index", "info"),
    [
        (BAR0, RegionInfo(BAR0, READ_WRITE, PAGE)),
        (BAR1, RegionInfo(BAR1, RegionFlags.READ, 256)),
        (BAR2, RegionInfo(BAR2, RegionFlags.WRITE, 256)),
        (BAR5, RegionInfo(BAR5, RegionFlags.NONE, 0)),
        (CONFIG, RegionInfo(CONFIG, READ_WRITE, 256)),
    ],
)
async def test_a_region_says_what_it_is(client: VfioUserClient, index: int, info: RegionInfo) -> None:
    answer, fds = await client.get_region_info(index)
    assert answer == info
    assert len(fds) == 0


@pytest.mark.parametrize("index", [9, 255, 2**32 - 1])
async def test_a_region_that_does_not_exist_is_refused(server: Server, index: int) -> None:
    async with greeted_client(server.path) as client:
        for value in (
            GetRegionInfo(index),
            GetRegionIoFds(index),
            RegionRead(0, index, 4),
            RegionRead(0, index, 0),
            RegionRead(0, index, SHORT_DATA + 1),
            RegionWrite(0, index, b"1234"),
            RegionWrite(0, index, bytes(SHORT_DATA + 1)),
            RegionWriteMulti((RegionWrite(0, index, b"1"),)),
        ):
            assert await client.refusal(value) == errno.EINVAL


@pytest.mark.parametrize(
    ("offset", "count"), [(0, 1), (1, 1), (3, 2), (5, 4), (7, 8), (4095, 1), (0, 4096), (2, 3)]
)
async def test_what_was_written_is_read(
    client: VfioUserClient, device: RegisterDevice, offset: int, count: int
) -> None:
    data = os.urandom(count)
    await client.region_write(BAR0, offset, data)
    assert device.data[BAR0][offset : offset + count] == data
    assert await client.region_read(BAR0, offset, count) == data


@pytest.mark.parametrize("size", [SHORT_DATA - 1, SHORT_DATA, SHORT_DATA + 1, 100_001, MAX_DATA_XFER_SIZE])
async def test_data_of_any_size_up_to_the_negotiated_goes_through(
    client: VfioUserClient, device: RegisterDevice, size: int
) -> None:
    data = os.urandom(size)
    await client.region_write(BAR4, 5, data)
    assert device.data[BAR4][5 : 5 + size] == data
    assert await client.region_read(BAR4, 5, size) == data


async def test_more_data_than_negotiated_is_refused(client: VfioUserClient, device: RegisterDevice) -> None:
    for refused in (
        client.region_read(BAR4, 0, MAX_DATA_XFER_SIZE + 1),
        client.region_read(BAR4, 0, 2**32 - 1),
        client.region_write(BAR4, 0, b"x" * (MAX_DATA_XFER_SIZE + 1)),
    ):
        with pytest.raises(RemoteError) as refusal:
            await refused
        assert refusal.value.errno == errno.EINVAL
    assert device.data[BAR4] == bytes(BIG_SIZE)


@pytest.mark.parametrize(
    ("offset", "count"), [(PAGE, 1), (PAGE - 1, 2), (PAGE - 3, 4), (2**64 - 4, 4), (2**64 - 1, 1), (2**63, 8)]
)
async def test_an_access_outside_of_a_region_is_refused(
    server: Server, device: RegisterDevice, offset: int, count: int
) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(RegionRead(offset, BAR0, count)) == errno.EINVAL
        assert await client.refusal(RegionWrite(offset, BAR0, b"x" * count)) == errno.EINVAL
        write = RegionWrite(offset, BAR0, b"x" * count)
        assert await client.refusal(RegionWriteMulti((write,))) == errno.EINVAL
    assert device.data[BAR0] == bytes(PAGE)


async def test_an_access_of_no_bytes_is_answered_with_none(server: Server) -> None:
    async with greeted_client(server.path) as client:
        reply = await client.ask(RegionRead(PAGE, BAR0, 0))
        assert RegionReadReply.unpack(reply.payload) == RegionReadReply(PAGE, BAR0, b"")
        reply = await client.ask(RegionWrite(0, BAR0, b""))
        assert RegionWriteReply.unpack(reply.payload) == RegionWriteReply(0, BAR0, 0)


async def test_a_direction_that_a_region_lacks_is_refused(server: Server) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(RegionWrite(0, BAR1, b"1")) == errno.EPERM
        assert await client.refusal(RegionRead(0, BAR2, 1)) == errno.EPERM
        assert await client.refusal(RegionRead(0, BAR5, 1)) == errno.EINVAL


async def test_several_writes_in_one_message_are_done_in_order(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    written: list[bytes] = []
    device.on_write = {0: written.append, 8: written.append}
    writes = [RegionWrite(0, BAR0, b"12345678"), RegionWrite(8, BAR0, b"x"), RegionWrite(0, BAR0, b"abcd")]
    assert await client.write_multi(writes) == 3
    assert written == [b"12345678", b"x", b"abcd"]
    assert device.data[BAR0][:9] == b"abcd5678x"


async def test_no_writes_in_one_message_are_none(client: VfioUserClient) -> None:
    assert await client.write_multi([]) == 0


async def test_of_several_writes_those_before_a_refused_one_are_done(
    server: Server, device: RegisterDevice
) -> None:
    good, bad = RegionWrite(0, BAR0, b"good"), RegionWrite(PAGE, BAR0, b"bad")
    async with greeted_client(server.path) as client:
        assert (
            await client.refusal(RegionWriteMulti((good, bad, RegionWrite(4, BAR0, b"late")))) == errno.EINVAL
        )
    assert device.data[BAR0][:8] == b"good\0\0\0\0"


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("=Q", 2) + struct.pack("=QII8s", 0, BAR0, 4, b"abcd"),
        struct.pack("=Q", 0) + struct.pack("=QII8s", 0, BAR0, 4, b"abcd"),
        struct.pack("=Q", 2**64 - 1) + struct.pack("=QII8s", 0, BAR0, 4, b"abcd"),
        struct.pack("=Q", 1) + struct.pack("=QII8s", 0, BAR0, 9, b"abcdefgh"),
        struct.pack("=Q", 1) + struct.pack("=QII4s", 0, BAR0, 4, b"abcd"),
    ],
)
async def test_several_writes_that_do_not_add_up_are_refused(
    server: Server, device: RegisterDevice, payload: bytes
) -> None:
    async with greeted_client(server.path) as client:
        assert error_of(await client.ask_raw(Command.REGION_WRITE_MULTI, payload)) == errno.EINVAL
    assert device.data[BAR0] == bytes(PAGE)


async def test_a_mappable_region_says_where_and_comes_with_its_fd(
    device: RegisterDevice, options: ConnectionOptions
) -> None:
    device.share_bar3()
    areas = tuple(SparseArea(area.offset, area.length) for area in AREAS)
    async with running_server(device, options) as server, open_client(server.path) as client:
        info, fds = await client.get_region_info(BAR3)
        with fds:
            assert info.flags == READ_WRITE | RegionFlags.MMAP
            assert info.capabilities == (SparseMmap(areas),)
            fd = fds.take()
            assert fd is not None
        with mmap.mmap(fd, areas[0].size, offset=areas[0].offset) as mapped:
            mapped[:4] = b"seen"
        os.close(fd)
        assert os.pread(device.shared_fd, 4, areas[0].offset) == b"seen"


async def test_a_client_that_takes_one_fd_hears_of_all_mappable_areas(
    device: RegisterDevice, options: ConnectionOptions
) -> None:
    device.share_bar3()
    async with running_server(device, options) as server, greeted_client(server.path, None) as client:
        message = await client.ask(GetRegionInfo(BAR3, argsz=256))
        with ReceivedFds(message.fds) as fds:
            assert len(fds) == 1
            info = RegionInfo.unpack(message.payload)
    assert info.capabilities == (SparseMmap(tuple(SparseArea(*area) for area in AREA_FIELDS)),)


async def test_a_region_info_that_does_not_fit_is_cut_and_says_what_it_takes(
    device: RegisterDevice, options: ConnectionOptions
) -> None:
    device.share_bar3()
    async with running_server(device, options) as server, greeted_client(server.path) as client:
        message = await client.ask(GetRegionInfo(BAR3, argsz=32))
        for fd in message.fds:
            os.close(fd)
        assert len(message.payload) == 32
        needed, flags, index, capability, size, _ = struct.unpack("=IIIIQQ", message.payload)
        # linux/vfio.h: the header, the capability's 16 bytes, and 16 for each of two areas.
        assert (needed, index, capability, size) == (32 + 16 + 2 * 16, BAR3, 0, 8 * PAGE)
        assert not flags & RegionFlags.CAPS
        message = await client.ask(GetRegionInfo(BAR3, argsz=needed))
        for fd in message.fds:
            os.close(fd)
        assert len(message.payload) == needed


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DEVICE_GET_INFO, struct.pack("=IIII", 15, 0, 0, 0)),
        (Command.DEVICE_GET_REGION_INFO, struct.pack("=IIIIQQ", 31, 0, BAR0, 0, 0, 0)),
        (Command.DEVICE_GET_REGION_IO_FDS, struct.pack("=IIII", 15, 0, BAR0, 0)),
        (Command.DEVICE_GET_REGION_IO_FDS, struct.pack("=IIII", 16, 1, BAR0, 0)),
        (Command.DEVICE_GET_IRQ_INFO, struct.pack("=IIII", 0, 0, 0, 0)),
    ],
)
async def test_an_argsz_without_room_for_the_fixed_part_is_refused(
    server: Server, command: Command, payload: bytes
) -> None:
    async with greeted_client(server.path) as client:
        assert error_of(await client.ask_raw(command, payload)) == errno.EINVAL


async def test_more_room_than_needed_is_not_filled(server: Server) -> None:
    async with greeted_client(server.path) as client:
        assert len((await client.ask(GetInfo(argsz=2**32 - 1))).payload) == 16
        assert len((await client.ask(GetRegionInfo(BAR0, argsz=2**32 - 1))).payload) == 32
        assert len((await client.ask(GetRegionIoFds(BAR0, argsz=2**32 - 1))).payload) == 16


async def test_no_region_is_reached_by_fd(client: VfioUserClient) -> None:
    info, fds = await client.get_region_io_fds(BAR0)
    assert info.sub_regions == ()
    assert len(fds) == 0


async def test_reset_resets_the_device(client: VfioUserClient, device: RegisterDevice) -> None:
    await client.reset()
    assert device.resets == 1


@pytest.mark.parametrize("feature", [Feature.MIGRATION, Feature.MIG_DEVICE_STATE, 0, 0xFFFF])
async def test_a_feature_that_the_device_lacks_is_refused(server: Server, feature: int) -> None:
    async with greeted_client(server.path) as client:
        for flags in (FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE | FeatureFlags.GET):
            assert await client.refusal(DeviceFeature(feature, flags)) == errno.ENOTTY


async def test_migration_data_without_migration_is_refused(server: Server) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(MigDataRead(4096)) == errno.EINVAL
        assert await client.refusal(MigDataWrite(b"state")) == errno.EINVAL


async def test_the_gpu_survives_any_access_of_its_regions(
    log: list[EventDict], options: ConnectionOptions
) -> None:
    async with (
        running_server(create_device(MODELS, "virtio-gpu"), options) as server,
        open_client(server.path) as client,
    ):
        for region in range(9):
            info, _ = await client.get_region_info(region)
            for offset in range(0, min(info.size, 0x500), 13):
                for count in (0, 1, 2, 3, 4, 5, 8, 16, 64):
                    if offset + count > info.size:
                        continue
                    await client.post(RegionRead(offset, region, count))
                    await client.post(RegionWrite(offset, region, b"\xff" * count))
        await client.reset()
        assert (await client.region_read(CONFIG, 0, 4)).hex() == "f41a5010"
    assert not [event for event in log if event["event"] == "device_fault"]


async def test_a_client_sees_how_many_writes_were_done(server: Server) -> None:
    async with greeted_client(server.path) as client:
        reply = await client.ask(RegionWriteMulti((RegionWrite(0, BAR0, b"1"), RegionWrite(1, BAR0, b"2"))))
        assert RegionWriteMultiReply.unpack(reply.payload).count == 2
