"""A map that the session takes and the library refuses: it is in neither, and the connection goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from structlog.typing import EventDict

from protocol import DmaMap, DmaMapFlags, DmaUnmap, RegionRead
from server.libvfio_user.library import MAX_DMA_REGIONS_OF_OLDER, load_library
from server.libvfio_user.transport import LibraryTransport
from server.native.serve import ConnectionOptions
from tests.fds import open_fds
from tests.server.register_device import CONFIG, PAGE, RegisterDevice
from tests.server.running import Server, mappings, running_server
from tests.server.transports.raw import error_of, greeted_client
from tests.server.transports.test_dma import memfd

MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE
ONE_TOO_MANY = DmaMap(1 << 30, PAGE, MAP_FLAGS)


@pytest.fixture
async def server(device: RegisterDevice, log: list[EventDict]) -> AsyncIterator[Server]:
    """A server that believes that the library holds more regions than it does."""
    transport = LibraryTransport(load_library())
    transport.library_regions = 2 * MAX_DMA_REGIONS_OF_OLDER
    async with running_server(device, ConnectionOptions(transport=transport)) as server:
        yield server


async def test_what_the_library_refuses_is_not_kept_by_the_session(
    server: Server, log: list[EventDict]
) -> None:
    async with greeted_client(server.path) as client:
        session = server.engine.session
        assert session is not None
        for number in range(MAX_DMA_REGIONS_OF_OLDER):
            assert not (await client.ask(DmaMap(2 * number * PAGE, PAGE, MAP_FLAGS))).header.is_error
        fds, maps = open_fds(), mappings()
        for _ in range(20):
            with memfd(PAGE) as fd:
                assert error_of(await client.ask(ONE_TOO_MANY, [fd])) != 0
            assert session.memory.stats()["regions"] == MAX_DMA_REGIONS_OF_OLDER
            assert session.memory.stats()["files"] == 0
        assert open_fds() == fds
        assert mappings() - maps < 5  # the interpreter's own heap may take some
        assert not (await client.ask(RegionRead(0, CONFIG, 4))).header.is_error
        assert not (await client.ask(DmaUnmap(0, PAGE))).header.is_error
        with memfd(PAGE) as fd:
            assert not (await client.ask(ONE_TOO_MANY, [fd])).header.is_error
    refused = [event for event in log if event["event"] == "request_refused"]
    assert refused
    assert all(event["command"] == "DMA_MAP" and "\n" not in event["reason"] for event in refused)
