"""A library that fails while it serves a request of ours: the client is told or dropped, and nobody waits for ever."""

from __future__ import annotations

import errno
import resource
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from structlog.typing import EventDict

from protocol import DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags, RegionRead
from protocol.codec import PackableRequest
from server.libvfio_user.library import Library, load_library
from server.libvfio_user.transport import LibraryTransport
from server.native.serve import ConnectionOptions
from tests.fds import open_fds
from tests.server.register_device import CONFIG, PAGE, RegisterDevice
from tests.server.running import Server, running_server
from tests.server.transports.raw import RawClient, greeted_client
from tests.server.transports.test_dma import memfd
from tests.server.transports.test_endurance import until_left
from tests.server.transports.test_handshake import assert_served

MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE
REQUESTS: dict[str, PackableRequest] = {
    "map": DmaMap(PAGE, PAGE, MAP_FLAGS),
    "unmap": DmaUnmap(0, PAGE),
    "unmap all": DmaUnmap(flags=DmaUnmapFlags.ALL),
}


@pytest.fixture
def library() -> Library:
    return load_library()


@pytest.fixture
async def server(device: RegisterDevice, log: list[EventDict], library: Library) -> AsyncIterator[Server]:
    async with running_server(device, ConnectionOptions(transport=LibraryTransport(library))) as server:
        yield server


def fails_once(call: Callable[[int], int], code: int) -> Callable[[int], int]:
    left = [code]

    def function(context: int) -> int:
        if left:
            raise OSError(left.pop(), "vfu_run_ctx: no")
        return call(context)

    return function


def fails_after(call: Callable[[int], int], code: int) -> Callable[[int], int]:
    """The library does what it was asked to, and fails then."""
    left = [code]

    def function(context: int) -> int:
        done = call(context)
        if left:
            raise OSError(left.pop(), "vfu_run_ctx: no")
        return done

    return function


async def is_answered_or_dropped(
    client: RawClient, request: PackableRequest, fds: Sequence[int] = ()
) -> bool:
    """Whether an answer came; the test fails where neither an answer nor the end comes."""
    with trio.fail_after(60):
        try:
            await client.ask(request, fds)
        except (ConnectionResetError, BrokenPipeError):
            return False
    return True


@pytest.mark.parametrize("fails", [fails_once, fails_after])
@pytest.mark.parametrize("request_name", REQUESTS)
async def test_the_next_request_is_answered_or_the_connection_is_over(
    server: Server,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    request_name: str,
    fails: Callable[[Callable[[int], int], int], Callable[[int], int]],
) -> None:
    await assert_served(server)
    await until_left(server)
    before = open_fds()
    async with greeted_client(server.path) as client:
        with memfd(2 * PAGE) as fd:
            assert not (await client.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])).header.is_error
        monkeypatch.setattr(library, "run_ctx", fails(library.run_ctx, errno.ENOMEM))
        # Each of these is for the library itself, or goes through it.
        for request in (REQUESTS[request_name], RegionRead(0, CONFIG, 4), DmaMap(1 << 30, PAGE, MAP_FLAGS)):
            if not await is_answered_or_dropped(client, request):
                break
    await until_left(server)
    assert open_fds() == before
    await assert_served(server)


@contextmanager
def room_for_fds(count: int) -> Iterator[None]:
    """No more than ``count`` fds can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    free = [number for number in range(max(used) + count + 2) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("room", range(4))
async def test_a_map_that_the_last_fds_are_not_enough_for_is_answered_and_so_is_what_follows_or_it_is_over(
    server: Server, room: int
) -> None:
    """The library needs an fd of its own for what is sent to it: it fails without, and not as it refuses."""
    async with greeted_client(server.path) as client:
        session = server.engine.session
        assert session is not None
        with memfd(PAGE) as fd:
            request = DmaMap(0, PAGE, MAP_FLAGS)
            with room_for_fds(room):
                goes_on = await is_answered_or_dropped(client, request, [fd])
            mapped = session.memory.stats()["regions"]
            if goes_on and await is_answered_or_dropped(client, RegionRead(0, CONFIG, 4)) and not mapped:
                assert not (await client.ask(request, [fd])).header.is_error
                assert session.memory.stats()["regions"] == 1
    await until_left(server)
    await assert_served(server)
