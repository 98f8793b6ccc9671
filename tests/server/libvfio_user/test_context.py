"""One context of the real library with a made-up owner: what it calls back, and what an owner that raises does."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.contract import Region
from protocol import (
    HEADER_SIZE,
    Capabilities,
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    Header,
    RegionRead,
    RegionWrite,
    Version,
    encode_request,
)
from protocol.codec import PackableRequest
from server.libvfio_user.context import Context
from server.libvfio_user.library import MAX_DMA_REGIONS_OF_OLDER, load_library
from tests.fds import open_fds
from tests.server.register_device import BAR0, CONFIG, PAGE, RegisterDevice
from tests.server.running import mappings

VERSION = Version(0, 0, Capabilities(max_msg_fds=16, max_data_xfer_size=1 << 20))
MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE


class Owner:
    """Records what the library calls back; raises ``raises[name]`` where a test put it."""

    command = "SOMETHING"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.raises: dict[str, BaseException] = {}
        self.busy = False
        self.failures: list[tuple[str, Exception]] = []
        self.refusals: list[str] = []
        self.code = errno.EIO

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self._record("region_read", index, offset, count)
        return bytes(range(count))

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        self._record("region_write", index, offset, bytes(data))

    def quiesce(self) -> bool:
        self._record("quiesce")
        return self.busy

    def dma_registered(self, iova: int, size: int) -> None:
        self._record("dma_registered", iova, size)

    def dma_unregistered(self, iova: int) -> None:
        self._record("dma_unregistered", iova)

    def reset(self) -> None:
        self._record("reset")

    def failed(self, command: str, error: Exception) -> int:
        self.failures.append((command, error))
        return self.code

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def _record(self, *call: object) -> None:
        self.calls.append(call)
        if call[0] in self.raises:
            raise self.raises[str(call[0])]


class Client:
    """Sends one request at a time, and has ``context`` serve it."""

    def __init__(self, context: Context, sock: socket.socket) -> None:
        self.context = context
        self.sock = sock

    def ask(self, value: PackableRequest) -> tuple[int, bytes]:
        """The errno of the reply, and its payload."""
        self.sock.sendall(encode_request(7, value))
        self.context.run()
        reply = self.sock.recv(4096, socket.MSG_DONTWAIT)
        header = Header.unpack(reply)
        return (header.error if header.is_error else 0), reply[HEADER_SIZE:]


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def client(owner: Owner, device: RegisterDevice) -> Iterator[Client]:
    context = Context(load_library(), owner, MAX_DMA_REGIONS_OF_OLDER)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            context.adopt(ours, VERSION, device.regions, device.irqs)
            yield Client(context, theirs)
        finally:
            context.close()


def test_the_owner_is_asked_for_exactly_what_the_client_asked_for(client: Client, owner: Owner) -> None:
    code, payload = client.ask(RegionRead(8, BAR0, 4))
    assert (code, payload[-4:]) == (0, bytes(range(4)))
    assert client.ask(RegionWrite(16, CONFIG, b"data"))[0] == 0
    assert owner.calls == [("region_read", BAR0, 8, 4), ("region_write", CONFIG, 16, b"data")]


@pytest.mark.parametrize(
    "code",
    [errno.EBUSY, errno.ENOTCONN, errno.EAGAIN, errno.EINTR, errno.ECONNRESET, errno.ENOMSG, errno.EIO],
)
@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("region_read", RegionRead(0, BAR0, 4)),
        ("region_write", RegionWrite(0, BAR0, b"1234")),
        ("reset", DeviceReset()),
    ],
    ids=["read", "write", "reset"],
)
def test_an_owner_may_raise_for_any_errno_and_the_library_goes_on(
    client: Client, owner: Owner, name: str, request_of: PackableRequest, code: int
) -> None:
    owner.code = code
    owner.raises[name] = RuntimeError("broken")
    for _ in range(2):
        assert client.ask(request_of)[0] == code
    owner.raises.clear()
    assert client.ask(request_of)[0] == 0
    assert [error for _, error in owner.failures] == [owner.failures[0][1]] * 2


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("region_read", RegionRead(0, BAR0, 4)),
        ("region_write", RegionWrite(0, BAR0, b"1234")),
        ("reset", DeviceReset()),
        ("quiesce", DeviceReset()),
    ],
    ids=["read", "write", "reset", "quiesce"],
)
def test_an_interrupt_in_a_callback_comes_out_of_run(
    client: Client, owner: Owner, name: str, request_of: PackableRequest
) -> None:
    owner.raises[name] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        client.ask(request_of)
    assert owner.failures == []


@pytest.mark.parametrize("name", ["dma_registered", "dma_unregistered"])
def test_an_owner_that_raises_where_c_expects_no_result_is_reported_and_the_request_done(
    client: Client, owner: Owner, name: str
) -> None:
    owner.raises[name] = error = RuntimeError("broken")
    client.context.ask(DmaMap(0, PAGE, MAP_FLAGS))
    client.context.ask(DmaUnmap(0, PAGE))
    owner.raises.clear()
    client.context.ask(DmaMap(0, PAGE, MAP_FLAGS))
    assert [raised for _, raised in owner.failures] == [error]
    assert client.ask(RegionRead(0, BAR0, 4))[0] == 0


def test_the_older_generation_holds_as_many_regions_as_the_binding_says_and_no_more(client: Client) -> None:
    for number in range(MAX_DMA_REGIONS_OF_OLDER):
        client.context.ask(DmaMap(number * PAGE, PAGE, MAP_FLAGS))
    with pytest.raises(OSError, match="libvfio-user") as refused:
        client.context.ask(DmaMap(1 << 30, PAGE, MAP_FLAGS))
    assert refused.value.errno not in (0, errno.EBUSY)
    client.context.ask(DmaUnmap(flags=DmaUnmapFlags.ALL))
    client.context.ask(DmaMap(1 << 30, PAGE, MAP_FLAGS))


def test_a_request_of_ours_that_is_refused_leaves_the_client_in_its_place(client: Client) -> None:
    client.context.ask(DmaMap(0, PAGE, MAP_FLAGS))
    with pytest.raises(OSError, match="libvfio-user") as refused:
        client.context.ask(DmaMap(0, 2 * PAGE, MAP_FLAGS))
    assert refused.value.errno == errno.EINVAL
    assert client.ask(RegionRead(0, BAR0, 4))[0] == 0


def test_a_busy_owner_keeps_the_library_waiting_until_there_is_word(client: Client, owner: Owner) -> None:
    client.context.ask(DmaMap(0, PAGE, MAP_FLAGS))
    owner.busy = True
    with pytest.raises(OSError, match="vfu_run_ctx") as waits:
        client.context.ask(DmaUnmap(0, PAGE))
    assert waits.value.errno == errno.EBUSY
    assert ("dma_unregistered", 0) not in owner.calls
    owner.busy = False
    client.context.quiesced()
    assert ("dma_unregistered", 0) in owner.calls
    assert client.ask(RegionRead(0, BAR0, 4))[0] == 0


@pytest.mark.parametrize("state", ["new", "served", "mapped", "waiting", "hung up"])
def test_whatever_a_context_is_at_closing_it_gives_everything_back_and_calls_nobody(
    owner: Owner, device: RegisterDevice, state: str
) -> None:
    library = load_library()

    def serve() -> None:
        context = Context(library, owner, MAX_DMA_REGIONS_OF_OLDER)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if state != "new":
                context.adopt(ours, VERSION, device.regions, device.irqs)
            if state in ("mapped", "waiting"):
                fd = os.memfd_create("guest")
                os.ftruncate(fd, PAGE)
                context.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])
                os.close(fd)
            if state == "waiting":
                owner.busy = True
                with pytest.raises(OSError, match="vfu_run_ctx"):
                    context.ask(DmaUnmap(0, PAGE))
                owner.busy = False
            if state == "hung up":
                theirs.close()
                with pytest.raises(OSError, match="vfu_run_ctx") as gone:
                    context.run()
                assert gone.value.errno == errno.ENOTCONN
            before = len(owner.calls)
            context.close()
            context.close()
            assert len(owner.calls) == before

    serve()
    fds, maps, folders = open_fds(), mappings(), sockets()
    for _ in range(30):
        serve()
    assert (open_fds(), sockets()) == (fds, folders)
    assert mappings() - maps < 5  # the interpreter's own heap may take some


def sockets() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("vgpud-*"))


def test_a_device_that_the_library_refuses_leaves_nothing_behind(
    owner: Owner, device: RegisterDevice
) -> None:
    ours, theirs = socket.socketpair()
    before, folders = open_fds(), sockets()
    with ours, theirs:
        context = Context(load_library(), owner, MAX_DMA_REGIONS_OF_OLDER)
        too_many = [*device.regions, *[Region("one too many", PAGE)] * 3]
        with pytest.raises(OSError, match="vfu_setup_region"):
            context.adopt(ours, VERSION, too_many, device.irqs)
        context.close()
        assert open_fds() == before
    assert sockets() == folders
