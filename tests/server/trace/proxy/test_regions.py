"""A proxy that sees everything: nothing of the device is mapped past it, and what it does not change passes."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from protocol import (
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    GetRegionInfo,
    GetRegionIoFds,
    MessageType,
    RegionFlags,
    RegionInfo,
    RegionIoFds,
    RegionType,
    SparseArea,
    SparseMmap,
    SubRegion,
    encode,
    encode_error,
    encode_reply,
)
from server.client import open_client
from server.fds import ReceivedFds
from tests.server.register_device import BAR3, PAGE, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.proxy.proxies import (
    Pair,
    running_proxy,
    same_file,
)
from tests.server.transports.raw import error_of


@pytest.fixture
def full() -> bool:
    return True


SPARSE = SparseMmap((SparseArea(0, PAGE), SparseArea(2 * PAGE, PAGE)))
TYPE = RegionType(0x8086, 1)
MAPPABLE = RegionInfo(2, RegionFlags.READ | RegionFlags.MMAP, 4 * PAGE, 0, (SPARSE, TYPE))


async def test_no_region_of_the_device_can_be_mapped(tmp_path: Path) -> None:
    device = RegisterDevice()
    device.share_bar3()
    async with (
        running_server(device) as server,
        running_proxy(server.path, tmp_path, full=True) as proxy,
        open_client(proxy.path) as client,
    ):
        info, fds = await client.get_region_info(BAR3)
    assert not len(fds)
    assert info == RegionInfo(BAR3, RegionFlags.READ | RegionFlags.WRITE, 8 * PAGE)
    _, reply = proxy.messages(Command.DEVICE_GET_REGION_INFO)
    sent = RegionInfo.unpack(reply.payload)
    assert sent.flags & RegionFlags.MMAP, "the trace has what the server sent"
    assert len(sent.capabilities) == 1
    assert len(reply.facts.fds) == 1
    device.close()


@pytest.mark.parametrize(("room", "size"), [(32, 32), (47, 32), (48, 48), (4096, 48), (1 << 20, 48)])
async def test_a_region_info_is_as_long_as_the_client_is_told(
    pair: Pair, memfd: int, room: int, size: int
) -> None:
    await pair.client.command(GetRegionInfo(2, room))
    request = await pair.server.message()
    asked = GetRegionInfo.unpack(request.payload)
    assert (asked.index, asked.argsz) == (2, max(room, asked.argsz))
    reply = encode_reply(7, Command.DEVICE_GET_REGION_INFO, MAPPABLE.pack(asked.argsz))
    await pair.server.send(reply, [memfd, memfd])
    got = await pair.client.message()
    assert got.fds == ()
    assert len(got.payload) == size
    info = RegionInfo.unpack(got.payload)
    assert (info.index, info.flags, info.size) == (2, RegionFlags.READ, 4 * PAGE)
    if size == 32:
        assert info.needed == 48
    else:
        assert info.capabilities == (TYPE,)


async def test_no_part_of_a_region_is_reached_by_fd(pair: Pair) -> None:
    eventfd = os.eventfd(0)
    await pair.client.command(GetRegionIoFds(0, 4096))
    assert (await pair.server.message()).header.command == Command.DEVICE_GET_REGION_IO_FDS
    offered = RegionIoFds(0, (SubRegion(0, 4, 0), SubRegion(8, 4, 0)))
    await pair.server.send(encode_reply(7, Command.DEVICE_GET_REGION_IO_FDS, offered), [eventfd])
    os.close(eventfd)
    got = await pair.client.message()
    assert got.fds == ()
    assert RegionIoFds.unpack(got.payload) == RegionIoFds(0)


async def test_error_replies_pass_as_they_are(pair: Pair) -> None:
    for command in (Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_REGION_IO_FDS, Command.VERSION):
        await pair.server.send(encode_error(3, command, errno.ENOTTY))
        assert error_of(await pair.client.message()) == errno.ENOTTY


async def test_fds_of_other_messages_pass(pair: Pair, memfd: int) -> None:
    await pair.client.send(encode(9, 77, MessageType.COMMAND, b"unknown"), [memfd])
    with ReceivedFds((await pair.server.message()).fds) as fds:
        assert same_file(fds.numbers[0], memfd)
    await pair.server.send(encode(9, 77, MessageType.REPLY, b"unknown"), [memfd])
    with ReceivedFds((await pair.client.message()).fds) as fds:
        assert same_file(fds.numbers[0], memfd)


@pytest.mark.parametrize(
    ("command", "payload", "fds"),
    [
        (Command.DMA_MAP, b"", 1),
        (Command.DMA_MAP, struct.pack("=IIQQQ", 32, 0xFF, 0, 0, PAGE), 1),
        (Command.DMA_MAP, DmaMap(0, PAGE, DmaMapFlags.READ).pack(), 2),
        (Command.DMA_UNMAP, b"short", 0),
        (Command.DEVICE_SET_IRQS, struct.pack("=IIIII", 20, 0x24, 2, 0, 2), 1),
        (Command.DEVICE_SET_IRQS, struct.pack("=IIIII", 20, 0x24, 2, 0, 1), 1),  # and the fd is no eventfd
        (Command.DEVICE_SET_IRQS, struct.pack("=IIIII", 20, 0x24, 2, 2**32 - 1, 1), 1),
        (Command.DEVICE_SET_IRQS, b"", 1),
        (Command.DEVICE_GET_REGION_INFO, b"", 0),
        (Command.DMA_READ, DmaRead(0, 4).pack(), 0),
    ],
)
async def test_a_request_that_makes_no_sense_is_for_the_server_to_refuse(
    pair: Pair, memfd: int, command: Command, payload: bytes, fds: int
) -> None:
    await pair.client.send(encode(7, command, MessageType.COMMAND, payload), [memfd] * fds)
    request = await pair.server.message()
    with ReceivedFds(request.fds) as received:
        assert [same_file(fd, memfd) for fd in received.numbers] == [True] * fds
    assert request.payload == payload
    await pair.server.send(encode_error(7, command, errno.EINVAL))
    assert error_of(await pair.client.message()) == errno.EINVAL
