"""DMA logging where requests are wrong, or come at a bad moment."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from devices.contract import GuestRange, PinnedPages, Prot
from protocol import (
    BitmapRequest,
    Capabilities,
    Command,
    DeviceFeature,
    DmaLoggingControl,
    DmaLoggingReport,
    DmaMap,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    DmaWriteReply,
    Feature,
    FeatureFlags,
    LoggingRange,
    Message,
    RegionWrite,
    encode_error,
    encode_reply,
    encode_request,
)
from server.client import RemoteError, VfioUserClient, open_client
from server.client.client import CAPABILITIES
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import Server
from tests.server.transports.raw import RawClient, error_of, greeted_client
from tests.server.transports.test_client_memory import TWIN, two_channels
from tests.server.transports.test_dma import READ_WRITE, memfd

PAGES = 16
CLEAN = bytes(8)
PAGE_1 = struct.pack("=Q", 1 << 1)
START = DeviceFeature(Feature.DMA_LOGGING_START, FeatureFlags.SET, DmaLoggingControl(PAGE).pack())
SMALL = Capabilities(max_msg_fds=8, max_data_xfer_size=4096)
LARGEST = 4096 * 8 * PAGE
"""Bytes of memory whose bitmap has as many bytes as a client with SMALL takes."""

on_both_sockets = pytest.mark.parametrize("capabilities", [CAPABILITIES, TWIN], ids=["main", "twin"])


@pytest.fixture
async def client(server: Server) -> AsyncIterator[VfioUserClient]:
    async with open_client(server.path) as client:
        yield client


def report(
    length: int = PAGES * PAGE, *, iova: int = 0, page_size: int = PAGE, argsz: int = 1 << 20
) -> DeviceFeature:
    data = DmaLoggingReport(iova, length, page_size).pack()
    return DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, data, argsz)


def bitmap_in(reply: Message) -> bytes:
    assert not reply.header.is_error
    return DmaLoggingReport.unpack(DeviceFeature.unpack(reply.payload).data).bitmap


async def refusal(client: VfioUserClient, request: DeviceFeature) -> int | None:
    with pytest.raises(RemoteError) as caught:
        await client.device_feature(request)
    return caught.value.errno


async def writing(client: RawClient, twin: RawClient, device: RegisterDevice) -> int:
    """Start logging, and have the device write page 1 by message: the id of its DMA_WRITE, which is under way."""

    async def write() -> None:
        await device.attached.memory.write(PAGE, b"12345678")

    device.on_write[0] = lambda _: device.attached.defer(write())
    assert not (await client.ask(DmaMap(0, PAGES * PAGE, READ_WRITE))).header.is_error
    assert not (await client.ask(START)).header.is_error
    assert not (await client.ask(RegionWrite(0, BAR0, b"go"))).header.is_error
    message = await twin.message()
    assert message.header.command == Command.DMA_WRITE
    return message.header.message_id


@on_both_sockets
async def test_a_page_is_dirty_while_a_message_that_writes_it_is_under_way(
    server: Server, device: RegisterDevice, capabilities: Capabilities
) -> None:
    async with two_channels(server, capabilities) as (client, twin):
        await writing(client, twin, device)
        for _ in range(2):
            assert bitmap_in(await client.ask(report())) == PAGE_1


async def test_a_report_right_behind_the_reply_to_a_write_has_its_page(
    server: Server, device: RegisterDevice
) -> None:
    """The server takes both at once, and has not gone on with the device's work when it makes the report."""
    async with greeted_client(server.path) as client:
        message_id = await writing(client, client, device)
        assert bitmap_in(await client.ask(report())) == PAGE_1
        written = encode_reply(message_id, Command.DMA_WRITE, DmaWriteReply(PAGE, 8))
        await client.send(written + encode_request(8, report()))
        assert bitmap_in(await client.message()) == PAGE_1


@pytest.mark.parametrize(
    "answer",
    [
        lambda message_id: encode_reply(message_id, Command.DMA_WRITE, DmaWriteReply(PAGE, 8)),
        lambda message_id: encode_error(message_id, Command.DMA_WRITE, errno.EIO),
    ],
    ids=["done", "refused, perhaps half-way"],
)
async def test_a_page_is_dirty_once_more_after_the_reply_to_its_write(
    server: Server, device: RegisterDevice, answer: Callable[[int], bytes]
) -> None:
    async with greeted_client(server.path) as client:
        message_id = await writing(client, client, device)
        assert bitmap_in(await client.ask(report())) == PAGE_1
        await client.send(answer(message_id))
        await client.ask(RegionWrite(8, BAR0, b"....."))
        assert bitmap_in(await client.ask(report())) == PAGE_1
        assert bitmap_in(await client.ask(report())) == CLEAN


async def test_unmapping_reports_what_a_message_under_way_writes(
    server: Server, device: RegisterDevice
) -> None:
    async with greeted_client(server.path) as client:
        await writing(client, client, device)
        request = DmaUnmap(
            0, PAGES * PAGE, DmaUnmapFlags.GET_DIRTY_BITMAP, bitmap=BitmapRequest(PAGE, len(PAGE_1))
        )
        assert DmaUnmapReply.unpack((await client.ask(request)).payload).bitmap == PAGE_1


async def test_unmapping_reports_what_a_holder_wrote_in_the_time_that_it_asked_for(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    def let_go_later(pins: PinnedPages) -> bool:
        async def write() -> None:
            pins.views()[0][:4] = b"last"
            pins.release()

        device.attached.defer(write())
        return True

    with memfd(PAGES * PAGE) as fd:
        await client.dma_map(0, PAGES * PAGE, fd=fd)
        await client.start_dma_logging()
        pins = device.attached.memory.pin_pages([GuestRange(PAGE, PAGE)], Prot.WRITE, let_go_later)
        reply = await client.dma_unmap(0, PAGES * PAGE, bitmap=BitmapRequest(PAGE, len(PAGE_1)))
        assert pins.revoked
        assert reply.bitmap == PAGE_1
        assert os.pread(fd, 4, PAGE) == b"last"


async def test_unmapping_reports_what_no_report_has_had(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    with memfd(PAGES * PAGE) as fd:
        await client.dma_map(0, PAGES * PAGE, fd=fd)
        await client.start_dma_logging()
        memory = device.attached.memory
        memory.view(3 * PAGE, 4, Prot.WRITE)
        assert await client.report_dma_logging(0, PAGES * PAGE) == struct.pack("=Q", 1 << 3)
        memory.view(5 * PAGE, 4, Prot.READ)
        memory.view(PAGE, 4, Prot.WRITE)
        reply = await client.dma_unmap(0, PAGES * PAGE, bitmap=BitmapRequest(PAGE, len(PAGE_1)))
        assert reply.bitmap == PAGE_1
        await client.dma_map(0, PAGES * PAGE, fd=fd)
        assert await client.report_dma_logging(0, PAGES * PAGE) == CLEAN


async def test_a_write_across_two_maps_is_logged_in_both(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    async def write() -> None:
        await device.attached.memory.write(2 * PAGE - 4, b"12345678")

    device.on_write[0] = lambda _: device.attached.defer(write())
    with memfd(2 * PAGE) as fd:
        await client.dma_map(PAGE, PAGE, fd=fd)
        await client.dma_map(2 * PAGE, PAGE, fd=fd, offset=PAGE)
        await client.start_dma_logging()
        await client.region_write(BAR0, 0, b"go")
        await client.region_read(BAR0, 0, 4)
        assert os.pread(fd, 8, PAGE - 4) == b"12345678"
        assert await client.report_dma_logging(0, PAGES * PAGE) == struct.pack("=Q", 0b110)


async def test_a_bitmap_that_is_longer_than_needed_is_padded(client: VfioUserClient) -> None:
    await client.dma_map(0, PAGE)
    await client.start_dma_logging()
    reply = await client.dma_unmap(0, PAGE, bitmap=BitmapRequest(PAGE, 4096))
    assert reply.bitmap == bytes(4096)


@pytest.mark.parametrize("hint", [1, 512, PAGE, 1 << 16, 1 << 63])
async def test_the_reply_to_a_start_has_the_page_size_that_is_logged_by(
    client: VfioUserClient, hint: int
) -> None:
    ranges = (LoggingRange(0, PAGE), LoggingRange(1 << 40, 1 << 30))
    data = DmaLoggingControl(hint, ranges).pack()
    request = DeviceFeature(Feature.DMA_LOGGING_START, FeatureFlags.SET, data, argsz=4096)
    chosen = DmaLoggingControl(PAGE, ranges).pack()
    assert await client.device_feature(request) == DeviceFeature(
        Feature.DMA_LOGGING_START, FeatureFlags.SET, chosen, argsz=4096
    )


async def test_stopping_what_was_not_started_is_harmless(client: VfioUserClient) -> None:
    await client.stop_dma_logging()
    await client.start_dma_logging()
    await client.stop_dma_logging()
    await client.stop_dma_logging()


@pytest.mark.parametrize("feature", [0, Feature.MIGRATION, Feature.MIG_DEVICE_STATE, 3, 9, 0xFFFF])
@pytest.mark.parametrize("flags", [FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE])
async def test_a_feature_that_the_device_does_not_have_is_refused(
    client: VfioUserClient, feature: int, flags: FeatureFlags
) -> None:
    assert await refusal(client, DeviceFeature(feature, flags)) == errno.ENOTTY


async def test_a_probe_may_leave_open_for_which_operation(client: VfioUserClient) -> None:
    probe = DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.PROBE)
    assert await client.device_feature(probe) == probe
    both = FeatureFlags.PROBE | FeatureFlags.GET | FeatureFlags.SET
    assert await refusal(client, DeviceFeature(Feature.DMA_LOGGING_REPORT, both)) == errno.EINVAL


@pytest.mark.parametrize(
    ("feature", "flags", "data"),
    [
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, b""),
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, struct.pack("=QI", PAGE, 0)),
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, struct.pack("=QII", PAGE, 1, 0)),
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, struct.pack("=QII", PAGE, 2**32 - 1, 0)),
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, struct.pack("=QIIQQ", PAGE, 0, 0, 0, PAGE)),
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, struct.pack("=QII", 0, 0, 0)),
        (Feature.DMA_LOGGING_START, FeatureFlags.SET, struct.pack("=QII", PAGE + 1, 0, 0)),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, b""),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, struct.pack("=QQ", 0, PAGE)),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, struct.pack("=QQQ", 0, PAGE, 0)),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, struct.pack("=QQQ", 0, PAGE, 3 * PAGE)),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, struct.pack("=QQQB", 0, PAGE, PAGE, 0)),
    ],
)
async def test_data_that_cannot_be_is_refused(
    client: VfioUserClient, feature: Feature, flags: FeatureFlags, data: bytes
) -> None:
    assert await refusal(client, DeviceFeature(feature, flags, data, argsz=4096)) == errno.EINVAL
    assert await refusal(client, report()) == errno.EINVAL  # nothing was started


@pytest.mark.parametrize("argsz", [8, 23])
async def test_a_start_whose_reply_has_no_room_starts_nothing(client: VfioUserClient, argsz: int) -> None:
    request = DeviceFeature(START.feature, START.flags, START.data, argsz)
    assert await refusal(client, request) == errno.EINVAL
    assert await refusal(client, report()) == errno.EINVAL


@pytest.mark.parametrize("argsz", [0, 7])
async def test_an_argsz_that_is_too_small_for_itself_is_refused(server: Server, argsz: int) -> None:
    async with greeted_client(server.path) as client:
        payload = struct.pack("=II", argsz, Feature.DMA_LOGGING_STOP | FeatureFlags.SET)
        assert error_of(await client.ask_raw(Command.DEVICE_FEATURE, payload)) == errno.EINVAL


async def test_a_report_without_room_is_refused_where_one_with_room_would_be(client: VfioUserClient) -> None:
    assert await refusal(client, report(PAGE, argsz=32)) == errno.EINVAL  # logging is off
    await client.start_dma_logging()
    assert await refusal(client, report(PAGE, iova=1, argsz=32)) == errno.EINVAL
    assert await refusal(client, report(2 * PAGE, iova=(1 << 64) - PAGE, argsz=32)) == errno.EOVERFLOW
    assert (await client.device_feature(report(PAGE, argsz=32))).argsz == 8 + 24 + 8


async def test_no_reply_has_more_data_than_the_client_takes(server: Server) -> None:
    async with open_client(server.path, capabilities=SMALL) as client:
        await client.start_dma_logging()
        assert await client.report_dma_logging(0, LARGEST) == bytes(4096)
        assert await refusal(client, report(LARGEST + PAGE)) == errno.EINVAL
        await client.dma_map(0, LARGEST)
        with pytest.raises(RemoteError) as caught:
            await client.dma_unmap(0, LARGEST, bitmap=BitmapRequest(PAGE, 4096 + 8))
        assert caught.value.errno == errno.EINVAL
        reply = await client.dma_unmap(0, LARGEST, bitmap=BitmapRequest(PAGE, 4096))
        assert reply.bitmap == bytes(4096)


async def test_all_of_the_address_space_is_reported_in_units_that_are_large_enough(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    await client.start_dma_logging()
    top = (1 << 64) - PAGE
    with memfd(PAGE) as fd:
        await client.dma_map(top, PAGE, fd=fd)
        device.attached.memory.view(top, PAGE, Prot.WRITE)
        last = await client.report_dma_logging(1 << 63, (1 << 63) - 1, 1 << 58)
        assert last == struct.pack("=Q", 1 << 31)
