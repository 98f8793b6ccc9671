"""DMA logging through a socket: what the device wrote, by DEVICE_FEATURE and by DMA_UNMAP."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable

import pytest

from devices.contract import GuestRange, Host, PinnedPages, Prot
from protocol import (
    BitmapRequest,
    DeviceFeature,
    DmaLoggingControl,
    DmaLoggingReport,
    Feature,
    FeatureFlags,
    LoggingRange,
)
from server.client import RemoteError, VfioUserClient, open_client
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import Server

PAGES = 64
BASE = 0x4000_0000


class Sink:
    """Memory by message that takes what is written."""

    def read(self, address: int, count: int) -> bytes:
        return bytes(count)

    def write(self, address: int, data: bytes) -> None:
        """Forget it."""


@pytest.fixture
async def client(server: Server) -> AsyncIterator[VfioUserClient]:
    """A client that shares memory at BASE, and has more by message behind it."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGES * PAGE)
    async with open_client(server.path, memory=Sink()) as client:
        await client.dma_map(BASE, PAGES * PAGE, fd=fd)
        await client.dma_map(BASE + PAGES * PAGE, PAGES * PAGE)
        yield client
    os.close(fd)


async def act(client: VfioUserClient, device: RegisterDevice, what: Callable[[Host], object]) -> None:
    """Have the device do something at a write to a register, and wait until that is done."""

    def begin(_: bytes) -> None:
        assert device.host is not None
        what(device.host)

    device.on_write[0] = begin
    await client.region_write(BAR0, 0, b"now!")
    await client.region_read(BAR0, 0, 4)


async def write(client: VfioUserClient, device: RegisterDevice, page: int, data: bytes = b"data") -> None:
    async def work(host: Host) -> None:
        await host.memory.write(BASE + page * PAGE, data)

    await act(client, device, lambda host: host.defer(work(host)))


async def pin(client: VfioUserClient, device: RegisterDevice, page: int, prot: Prot) -> PinnedPages:
    pins: list[PinnedPages] = []
    ranges = [GuestRange(BASE + page * PAGE, PAGE)]
    await act(
        client,
        device,
        lambda host: pins.append(host.memory.pin_pages(ranges, prot, lambda pins: pins.release())),
    )
    return pins[0]


async def start(client: VfioUserClient, *ranges: LoggingRange, page_size: int = PAGE) -> DeviceFeature:
    data = DmaLoggingControl(page_size, ranges).pack()
    return await client.device_feature(DeviceFeature(Feature.DMA_LOGGING_START, FeatureFlags.SET, data))


async def stop(client: VfioUserClient) -> None:
    await client.device_feature(DeviceFeature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET))


async def report(client: VfioUserClient, page_size: int = PAGE) -> set[int]:
    """The numbers of the units that were written."""
    data = DmaLoggingReport(BASE, 2 * PAGES * PAGE, page_size).pack()
    request = DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, data, argsz=1 << 20)
    return units(DmaLoggingReport.unpack((await client.device_feature(request)).data).bitmap)


def units(bitmap: bytes) -> set[int]:
    return {8 * index + bit for index, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


async def refusal(client: VfioUserClient, request: DeviceFeature) -> int | None:
    with pytest.raises(RemoteError) as caught:
        await client.device_feature(request)
    return caught.value.errno


async def test_what_the_device_wrote_is_reported_once(client: VfioUserClient, device: RegisterDevice) -> None:
    await write(client, device, 1)
    await start(client)
    await write(client, device, 3)
    await write(client, device, 7, bytes(PAGE + 1))
    await write(client, device, PAGES + 2)  # by message
    assert await report(client) == {3, 7, 8, PAGES + 2}
    assert await report(client) == set()


async def test_a_page_that_is_pinned_for_writing_is_dirty_each_time_until_it_is_released(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    before = await pin(client, device, 2, Prot.WRITE)
    await start(client)
    reader = await pin(client, device, 4, Prot.READ)
    writer = await pin(client, device, 5, Prot.WRITE)
    assert await report(client) == {2, 5}
    assert await report(client) == {2, 5}
    both = await pin(client, device, 4, Prot.READ | Prot.WRITE)
    for pins in (both, before, writer):
        pins.release()
    assert await report(client) == {2, 4, 5}
    assert await report(client) == set()
    reader.release()


@pytest.mark.parametrize(
    ("page_size", "expected"), [(512, set(range(8 * 18, 8 * 19))), (PAGE, {18}), (1 << 16, {1})]
)
async def test_a_report_is_in_the_units_that_it_asks_for(
    client: VfioUserClient, device: RegisterDevice, page_size: int, expected: set[int]
) -> None:
    await start(client, page_size=1 << 16)
    await write(client, device, 18)
    assert await report(client, page_size) == expected


async def test_only_the_ranges_that_were_asked_for_are_logged(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    await start(client, LoggingRange(BASE, 2 * PAGE), LoggingRange(BASE + 8 * PAGE, PAGE))
    for page in (1, 2, 8, 9):
        await write(client, device, page)
    assert await report(client) == {1, 8}


async def test_logging_that_was_stopped_starts_empty(client: VfioUserClient, device: RegisterDevice) -> None:
    await start(client)
    await write(client, device, 3)
    await stop(client)
    await start(client)
    assert await report(client) == set()


async def test_unmapping_says_what_was_written_up_to_then(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    await start(client)
    await write(client, device, 3)
    held = await pin(client, device, 6, Prot.WRITE)
    reply = await client.dma_unmap(BASE, PAGES * PAGE, bitmap=BitmapRequest(2 * PAGE, 8))
    assert held.revoked
    assert (reply.page_size, units(reply.bitmap)) == (2 * PAGE, {1, 3})


async def test_a_reset_does_not_end_logging(client: VfioUserClient, device: RegisterDevice) -> None:
    await start(client)
    await write(client, device, 3)
    await client.reset()
    assert await report(client) == {3}


async def test_the_next_client_finds_no_logging(server: Server) -> None:
    async with open_client(server.path) as client:
        await start(client)
    async with open_client(server.path) as other:
        data = DmaLoggingReport(BASE, PAGE, PAGE).pack()
        request = DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, data, 4096)
        assert await refusal(other, request) == errno.EINVAL


@pytest.mark.parametrize(
    ("feature", "flags"),
    [
        (Feature.DMA_LOGGING_START, FeatureFlags.SET),
        (Feature.DMA_LOGGING_STOP, FeatureFlags.SET),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET),
    ],
)
async def test_a_probe_finds_the_operations_that_there_are(
    client: VfioUserClient, feature: Feature, flags: FeatureFlags
) -> None:
    probe = DeviceFeature(feature, FeatureFlags.PROBE | flags)
    assert await client.device_feature(probe) == probe
    other = flags ^ FeatureFlags.GET ^ FeatureFlags.SET
    assert await refusal(client, DeviceFeature(feature, FeatureFlags.PROBE | other)) == errno.EINVAL
    assert await refusal(client, DeviceFeature(feature, other)) == errno.EINVAL


async def test_a_bitmap_that_does_not_fit_the_request_stays_in_the_log(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    await start(client)
    await write(client, device, 3)
    data = DmaLoggingReport(BASE, PAGES * PAGE, PAGE).pack()
    reply = await client.device_feature(DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, data))
    assert (reply.data, reply.argsz) == (b"", 8 + 24 + 8)
    assert await report(client) == {3}


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "expected"),
    [
        (0, 0, PAGE, errno.EINVAL),
        (1, PAGE, PAGE, errno.EINVAL),
        (0, 1 << 63, PAGE, errno.EINVAL),  # a bitmap of 2 ** 48 bytes
        ((1 << 64) - PAGE, 2 * PAGE, PAGE, errno.EOVERFLOW),
    ],
)
async def test_a_report_that_cannot_be_is_refused(
    client: VfioUserClient, iova: int, length: int, page_size: int, expected: int
) -> None:
    await start(client)
    data = DmaLoggingReport(iova, length, page_size).pack()
    request = DeviceFeature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, data, 1 << 31)
    assert await refusal(client, request) == expected


async def test_starting_twice_too_many_ranges_and_ranges_that_wrap_are_refused(
    client: VfioUserClient,
) -> None:
    def request(*ranges: LoggingRange) -> DeviceFeature:
        data = DmaLoggingControl(PAGE, ranges).pack()
        return DeviceFeature(Feature.DMA_LOGGING_START, FeatureFlags.SET, data)

    assert await refusal(client, request(LoggingRange((1 << 64) - 1, 2))) == errno.EOVERFLOW
    assert await refusal(client, request(*[LoggingRange(0, PAGE)] * 4097)) == errno.E2BIG
    await start(client)
    assert await refusal(client, request()) == errno.EINVAL


async def test_unmapping_with_a_bitmap_that_is_too_long_unmaps_nothing(
    client: VfioUserClient, device: RegisterDevice
) -> None:
    await start(client)
    with pytest.raises(RemoteError) as caught:
        await client.dma_unmap(BASE, PAGES * PAGE, bitmap=BitmapRequest(PAGE, 2 << 20))
    assert caught.value.errno == errno.EINVAL
    await write(client, device, 3)
    assert await report(client) == {3}
