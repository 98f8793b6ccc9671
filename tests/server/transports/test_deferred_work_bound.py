"""A client that lets its device's work wait for ever while more of it is asked for."""

from __future__ import annotations

import struct

import pytest
import trio
from structlog.typing import EventDict

from devices.display import Frame, PixelBuffer, PixelLayout
from devices.edu import Edu
from protocol import (
    Command,
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    DmaReadReply,
    GetInfo,
    Message,
    MessageType,
    PciRegion,
    RegionWrite,
    encode,
    encode_request,
)
from server.native.serve import ConnectionOptions
from server.work_queue import MAX_DEFERRED
from tests.server.register_device import RegisterDevice
from tests.server.running import Server, running_server
from tests.server.test_control import Screens
from tests.server.transports.raw import RawClient, greeted_client

BUS_MASTER = RegionWrite(4, PciRegion.CONFIG, struct.pack("<H", 6))
SOURCE, COMMAND, BUFFER = 0x80, 0x98, 0x40000


async def start_dma_that_waits(client: RawClient) -> None:
    """A transfer of four bytes to an edu device, from memory that is not shared."""
    await client.ask(DmaMap(0, 4096, DmaMapFlags.READ))
    await client.ask(BUS_MASTER)
    for register, value in enumerate((0, BUFFER, 4)):
        await client.ask(RegionWrite(SOURCE + 8 * register, PciRegion.BAR0, struct.pack("<Q", value)))
    await client.command(RegionWrite(COMMAND, PciRegion.BAR0, struct.pack("<Q", 1)), no_reply=True)
    assert (await client.message()).header.command == Command.DMA_READ


async def begin_again_and_again(client: RawClient) -> None:
    """Twice as often as there may be work, and see whether the server still answers."""
    start = RegionWrite(COMMAND, PciRegion.BAR0, struct.pack("<Q", 1))
    again = encode_request(1, DeviceReset(), no_reply=True) + encode_request(2, start, no_reply=True)
    for _ in range(2 * MAX_DEFERRED // 256):
        await client.send(again * 256)
    await client.ask(GetInfo())


async def test_a_client_that_has_its_device_begin_again_and_again_is_dropped(
    log: list[EventDict], options: ConnectionOptions
) -> None:
    async with running_server(Edu(), options) as server:
        async with greeted_client(server.path) as client:
            await start_dma_that_waits(client)
            with pytest.raises(OSError, match=r"Broken pipe|reset|closed"):
                await begin_again_and_again(client)
        async with greeted_client(server.path) as client:
            assert not (await client.ask(GetInfo())).header.is_error
    (dropped,) = [event for event in log if event["event"] == "client_dropped"]
    assert f"{MAX_DEFERRED} pieces" in dropped["reason"]


class CountedScreens(Screens):
    """A display whose picture is in memory that the client does not share."""

    def __init__(self, device: RegisterDevice) -> None:
        self._device = device
        self.begun = 0

    async def _capture(self, scanout: int) -> Frame:
        self.begun += 1
        data = await self._device.attached.memory.read(0, 4)
        return Frame(scanout, PixelBuffer(1, 1, 4, PixelLayout.BGRX, data))


async def answer_reads(client: RawClient, request: Message | None = None) -> None:
    """Answer ``request``, and whatever comes."""
    while True:
        header = (request or await client.message()).header
        reply = DmaReadReply(0, b"abcd").pack()
        await client.send(encode(header.message_id, header.command, MessageType.REPLY, reply))
        request = None


async def test_a_picture_that_nobody_waits_for_any_more_is_not_taken(
    device: RegisterDevice, server: Server
) -> None:
    screens = device.screens = CountedScreens(device)
    async with greeted_client(server.path) as client:
        await client.ask(DmaMap(0, 4096, DmaMapFlags.READ))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.engine.capture, 0)
            asked = await client.message()
            for _ in range(5):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await server.engine.capture(0)
            nursery.start_soon(answer_reads, client, asked)
            assert (await server.engine.capture(0)).buffer.pixels == b"abcd"
            nursery.cancel_scope.cancel()
    assert screens.begun == 2
