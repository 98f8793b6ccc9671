"""A library that fails, a client that dies inside a callback, and requests that only one side would take."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from structlog.typing import EventDict

from devices.contract import GuestRange, PinnedPages, Prot
from protocol import (
    Command,
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    RegionRead,
    RegionWrite,
    encode_request,
)
from server.fds import ReceivedFds
from server.libvfio_user.library import MAX_DMA_REGIONS_OF_OLDER, Library, load_library
from server.libvfio_user.transport import LibraryTransport
from server.native.serve import ConnectionOptions
from server.native.transport import TransportUnavailable
from server.transports import choose_transport
from tests.fds import open_fds
from tests.server.register_device import BAR0, CONFIG, PAGE, RegisterDevice
from tests.server.running import Server, mappings, running_server
from tests.server.transports.raw import RawClient, error_of, greeted_client, raw_client
from tests.server.transports.test_dma import memfd
from tests.server.transports.test_endurance import keep, until_left
from tests.server.transports.test_handshake import assert_served, dropped

MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE
HANG_UP = 0x20


@pytest.fixture
def library() -> Library:
    """The real one, of this test alone."""
    return load_library()


@pytest.fixture
async def server(device: RegisterDevice, log: list[EventDict], library: Library) -> AsyncIterator[Server]:
    async with running_server(device, ConnectionOptions(transport=LibraryTransport(library))) as server:
        yield server


def temporary_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("vgpud-*"))


def failing(code: int) -> object:
    def fail(*_arguments: object) -> int:
        raise OSError(code, "vfu_something: no")

    return fail


@pytest.mark.parametrize(
    "name", ["create_ctx", "setup_region", "setup_device_nr_irqs", "realize_ctx", "attach_ctx", "get_poll_fd"]
)
async def test_a_library_that_cannot_begin_costs_its_client_the_connection_and_nothing_else(
    server: Server, library: Library, log: list[EventDict], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    left = temporary_folders()
    with monkeypatch.context() as patch:
        patch.setattr(library, name, failing(errno.ENOMEM))
        async with raw_client(server.path) as client:
            assert error_of(await client.say_version()) == errno.ENOMEM
            assert await client.ended()
    assert len(dropped(log)) == 1
    assert temporary_folders() == left
    await assert_served(server)


@pytest.mark.parametrize("code", [errno.EFAULT, errno.EAGAIN, errno.ENOTCONN])
async def test_a_library_that_fails_in_the_middle_ends_the_connection_and_not_the_server(
    server: Server, library: Library, log: list[EventDict], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with greeted_client(server.path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(library, "run_ctx", failing(code))
            await client.command(RegionRead(0, CONFIG, 4))
            assert await client.ended()
    assert len(dropped(log)) == 1
    await assert_served(server)


async def test_a_map_that_the_library_refuses_is_refused_and_not_kept(
    server: Server, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with greeted_client(server.path) as client:
        with memfd(PAGE) as fd:
            session = server.engine.session
            assert session is not None
            with monkeypatch.context() as patch:
                patch.setattr(session, "dma_map", lambda *_arguments: session.memory.map(0, PAGE, Prot.READ))
                # To the library a region that overlaps; to the session, for this test, no matter what.
                assert not (await client.ask(DmaMap(PAGE, PAGE, MAP_FLAGS), [fd])).header.is_error
                session.memory.unmap(0, PAGE)
                patch.setattr(session.memory, "unmap", lambda *_range: None)
                assert await client.refusal(DmaMap(PAGE, PAGE * 2, MAP_FLAGS), [fd]) == errno.EINVAL
            session.memory.unmap(0, PAGE)
            assert not (await client.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])).header.is_error
            assert session.memory.stats()["regions"] == 1


async def hang_up(client: RawClient, server: Server, device: RegisterDevice, request: bytes) -> None:
    """Have the device close the client's socket while the library waits for it to answer ``request``."""
    device.on_write[HANG_UP] = lambda _data: client.sock.shutdown(socket.SHUT_RDWR)
    await client.send(request)
    assert await client.ended()
    await until_left(server)


async def test_a_client_that_dies_inside_a_callback_leaves_nothing_behind(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    pins: list[PinnedPages] = []
    await assert_served(server)
    await until_left(server)
    fds, maps = open_fds(), mappings()
    for _ in range(20):
        async with greeted_client(server.path) as client:
            with memfd(PAGE) as fd:
                await client.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])
            pins.append(device.attached.memory.pin_pages([GuestRange(0, PAGE)], Prot.READ, keep))
            await hang_up(client, server, device, encode_request(1, RegionWrite(HANG_UP, BAR0, bytes(4))))
        assert pins[-1].revoked
    assert mappings() - maps < 5  # the interpreter's own heap may take some
    assert open_fds() == fds
    assert [event for event in log if event["event"] == "device_fault"] == []
    await assert_served(server)


@pytest.mark.parametrize("method", ["region_read", "region_write", "reset"])
async def test_a_device_that_raises_inside_a_callback_is_an_error_reply_and_one_line(
    server: Server, device: RegisterDevice, log: list[EventDict], method: str
) -> None:
    requests: dict[str, RegionRead | RegionWrite | DeviceReset] = {
        "region_read": RegionRead(0, BAR0, 4),
        "region_write": RegionWrite(0, BAR0, b"1234"),
        "reset": DeviceReset(),
    }
    async with greeted_client(server.path) as client:
        device.broken.add(method)
        assert await client.refusal(requests[method]) == errno.EIO
        device.broken.clear()
        assert not (await client.ask(requests[method])).header.is_error
    assert [event["where"] for event in log if event["event"] == "device_fault"] == [
        requests[method].command.name
    ]
    assert not any(event["event"] == "request_refused" for event in log)


async def test_what_the_library_refuses_is_logged_as_anything_else_that_is_refused(
    server: Server, log: list[EventDict]
) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(RegionRead(0, 99, 4)) == errno.EINVAL
        session = server.engine.session
        assert session is not None
        assert session.counters.errors == 1
    (refused,) = [event for event in log if event["event"] == "request_refused"]
    assert refused["command"] == Command.REGION_READ.name
    assert "region" in refused["reason"]


async def test_regions_beyond_what_the_library_holds_are_mapped_all_the_same(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    many = 3 * MAX_DMA_REGIONS_OF_OLDER
    async with greeted_client(server.path) as client:
        with memfd(many * PAGE) as fd:
            os.pwrite(fd, b"last", (many - 1) * PAGE)
            for number in range(many):
                request = DmaMap(2 * number * PAGE, PAGE, MAP_FLAGS, number * PAGE)
                assert not (await client.ask(request, [fd])).header.is_error
            view = device.attached.memory.view(2 * (many - 1) * PAGE, 4, Prot.READ)
            assert view is not None
            assert bytes(view) == b"last"
            last = DmaUnmap(2 * (many - 1) * PAGE, PAGE)
            assert not (await client.ask(last)).header.is_error
            assert await client.refusal(last) == errno.ENOENT
            # Some that it knows, and some that it does not.
            middle = DmaUnmap(2 * 8 * PAGE, 2 * MAX_DMA_REGIONS_OF_OLDER * PAGE)
            assert not (await client.ask(middle)).header.is_error
            for number in range(8, 8 + MAX_DMA_REGIONS_OF_OLDER):
                request = DmaMap(2 * number * PAGE, PAGE, MAP_FLAGS, number * PAGE)
                assert not (await client.ask(request, [fd])).header.is_error
            assert not (await client.ask(DmaUnmap(flags=DmaUnmapFlags.ALL))).header.is_error
            assert not (await client.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])).header.is_error
    assert [event["dma_regions"] for event in log if event["event"] == "libvfio_user_full"] == [
        MAX_DMA_REGIONS_OF_OLDER
    ]


async def test_a_map_in_pieces_is_a_map(server: Server) -> None:
    data = encode_request(7, DmaMap(0, PAGE, MAP_FLAGS))
    async with greeted_client(server.path) as client:
        with memfd(PAGE) as fd:
            await client.send(data[:16], [fd])
            await trio.testing.wait_all_tasks_blocked()
            await client.send(data[16:])
            assert not (await client.message()).header.is_error
            session = server.engine.session
            assert session is not None
            assert session.memory.stats()["files"] == 1


async def test_more_fds_than_a_message_may_have_end_the_connection_and_none_stays(
    server: Server, log: list[EventDict]
) -> None:
    await assert_served(server)
    await until_left(server)
    before = open_fds()
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, RegionRead(0, CONFIG, 4)) * 2, [0] * 40)
        assert await client.ends()
    await until_left(server)
    assert len(dropped(log)) == 1
    assert open_fds() == before
    await assert_served(server)


async def test_a_message_that_never_ends_is_waited_for_without_work(server: Server) -> None:
    async with greeted_client(server.path) as client:
        await client.send(encode_request(1, RegionRead(0, CONFIG, 4))[:20])
        await trio.testing.wait_all_tasks_blocked()
        async with raw_client(server.path) as other:
            await other.send(b"1")
            await trio.testing.wait_all_tasks_blocked()


def test_a_device_of_another_shape_is_refused_at_the_start() -> None:
    class Odd(RegisterDevice):
        @property
        def irqs(self) -> tuple[()]:
            return ()

    assert choose_transport("native", Odd()).transport.name == "native"
    with pytest.raises(TransportUnavailable, match="--transport native"):
        choose_transport("libvfio-user", Odd())


def test_received_fds_are_duplicated_with_an_owner_of_their_own() -> None:
    with memfd(PAGE) as fd, ReceivedFds((fd,)) as fds:
        with fds.duplicates() as copies:
            assert len(copies) == 1
            assert copies.numbers != fds.numbers
        fds.take()
