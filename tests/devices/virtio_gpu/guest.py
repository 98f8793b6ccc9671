"""A guest's driver as far as virtio-gpu goes: builds requests from the structures of the specification.

    guest = Guest()
    guest.create_2d(1, width=4, height=2)

Layouts are written out here a second time, from virtio 1.3, 5.7.6, so that the device's are checked against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import shake_128
from struct import pack, unpack_from

from devices.contract import GuestRange
from devices.display import Frame
from devices.testing import FakeHost
from devices.virtio_gpu import GpuOptions, VirtioGpu

CONTROL, CURSOR = 0, 1
PAGE = 4096
EDID, UUID, BLOB = 1 << 1, 1 << 2, 1 << 3
FENCE, RING_IDX = 1, 2

GET_DISPLAY_INFO, CREATE_2D, UNREF, SET_SCANOUT, FLUSH, TRANSFER, ATTACH, DETACH = range(0x100, 0x108)
GET_CAPSET_INFO, GET_CAPSET, GET_EDID, ASSIGN_UUID, CREATE_BLOB, SET_SCANOUT_BLOB = range(0x108, 0x10E)
CTX_CREATE, MAP_BLOB, UNMAP_BLOB = 0x200, 0x208, 0x209
UPDATE_CURSOR, MOVE_CURSOR = 0x300, 0x301

OK, OK_DISPLAY_INFO, OK_EDID, OK_UUID = 0x1100, 0x1101, 0x1104, 0x1105
UNSPEC, NO_MEMORY, BAD_SCANOUT, BAD_RESOURCE, BAD_PARAMETER = 0x1200, 0x1201, 0x1202, 0x1203, 0x1205

BGRA, BGRX, ARGB, XRGB, RGBA, XBGR, ABGR, RGBX = 1, 2, 3, 4, 67, 68, 121, 134

Rect = tuple[int, int, int, int]
Entries = Sequence[tuple[int, int]]


class FakeChain:
    """A buffer whose readable part is ``request``, and whose writable part has ``space`` bytes."""

    def __init__(self, request: bytes, space: int) -> None:
        self.request = request
        self.response = bytearray(space)
        self.written = 0
        self.readable = [GuestRange(0, len(request))]
        self.writable = [GuestRange(0, space)]
        self.readable_length = len(request)
        self.writable_length = space

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        return self.request[offset:][:length]

    async def write(self, data: bytes | memoryview, offset: int = 0) -> int:
        count = min(len(data), self.writable_length - offset)
        self.response[offset : offset + count] = data[:count]
        self.written = max(self.written, offset + count)
        return count


class FakeTransport:
    """Counts configuration interrupts; has no host while disconnected, as a real one."""

    def __init__(self, host: FakeHost) -> None:
        self.connected = True
        self.config_changes = 0
        self._host = host

    @property
    def host(self) -> FakeHost:
        if not self.connected:
            raise RuntimeError("no host is connected")
        return self._host

    def config_changed(self) -> None:
        self.config_changes += 1


@dataclass
class Reply:
    """A response: the fields of its header, and what follows it."""

    type: int
    flags: int
    fence_id: int
    ctx_id: int
    ring_idx: int
    data: bytes


def noise(length: int) -> bytes:
    """Bytes without a pattern, the same each time."""
    return shake_128(b"noise").digest(length)


def header(command: int, flags: int = 0, fence_id: int = 0, ctx_id: int = 0, ring_idx: int = 0) -> bytes:
    """struct virtio_gpu_ctrl_hdr."""
    return pack("<IIQIBBBB", command, flags, fence_id, ctx_id, ring_idx, 0, 0, 0)


def parse(response: bytes) -> Reply:
    """Take a response apart."""
    kind, flags, fence_id, ctx_id, ring_idx = unpack_from("<IIQIB", response)
    return Reply(kind, flags, fence_id, ctx_id, ring_idx, response[24:])


def mem_entries(entries: Entries) -> bytes:
    """An array of struct virtio_gpu_mem_entry."""
    return b"".join(pack("<QII", address, length, 0) for address, length in entries)


class Guest:
    """Owns a device, which offers blobs unless told otherwise, and drives it by requests.

    Methods give the type of the response.
    """

    def __init__(
        self,
        options: GpuOptions | None = None,
        *,
        memory: int = 1 << 20,
        shared: bool = True,
        features: int = EDID | UUID | BLOB,
    ) -> None:
        self.host = FakeHost(memory, shared=shared)
        options = options or GpuOptions()
        self.gpu = VirtioGpu(replace(options, blob=True) if options.blob is None else options)
        self.transport = FakeTransport(self.host)
        self.gpu.transport = self.transport
        self.gpu.activate(features)

    def exchange(self, request: bytes, *, queue: int = CONTROL, space: int = 2048) -> bytes:
        """Send raw bytes, and give the response as long as the device says that it is."""
        chain = FakeChain(request, space)
        written = self.host.drive(self.gpu.handle(queue, chain))
        assert written == chain.written
        return bytes(chain.response[: chain.written])

    def ask(self, command: int, body: bytes = b"", *, queue: int = CONTROL) -> Reply:
        return parse(self.exchange(header(command) + body, queue=queue))

    def send(self, command: int, body: bytes = b"") -> int:
        reply = self.ask(command, body)
        assert reply.data == b""
        return reply.type

    def create_2d(self, resource: int, *, width: int = 4, height: int = 4, pixel_format: int = BGRX) -> int:
        return self.send(CREATE_2D, pack("<IIII", resource, pixel_format, width, height))

    def unref(self, resource: int) -> int:
        return self.send(UNREF, pack("<II", resource, 0))

    def attach(self, resource: int, entries: Entries) -> int:
        return self.send(ATTACH, pack("<II", resource, len(entries)) + mem_entries(entries))

    def detach(self, resource: int) -> int:
        return self.send(DETACH, pack("<II", resource, 0))

    def transfer(self, resource: int, rect: Rect, offset: int = 0) -> int:
        return self.send(TRANSFER, pack("<IIIIQII", *rect, offset, resource, 0))

    def set_scanout(self, scanout: int, resource: int, rect: Rect = (0, 0, 0, 0)) -> int:
        return self.send(SET_SCANOUT, pack("<IIIIII", *rect, scanout, resource))

    def flush(self, resource: int, rect: Rect) -> int:
        return self.send(FLUSH, pack("<IIIIII", *rect, resource, 0))

    def create_blob(
        self, resource: int, size: int, entries: Entries, *, blob_mem: int = 1, flags: int = 2
    ) -> int:
        body = pack("<IIIIQQ", resource, blob_mem, flags, len(entries), 0, size)
        return self.send(CREATE_BLOB, body + mem_entries(entries))

    def set_scanout_blob(
        self,
        scanout: int,
        resource: int,
        rect: Rect,
        *,
        width: int,
        height: int,
        stride: int,
        offset: int = 0,
        pixel_format: int = BGRX,
    ) -> int:
        body = pack("<IIIIIIIIII", *rect, scanout, resource, width, height, pixel_format, 0)
        return self.send(SET_SCANOUT_BLOB, body + pack("<8I", stride, 0, 0, 0, offset, 0, 0, 0))

    def cursor(
        self,
        command: int,
        *,
        scanout: int = 0,
        x: int = 0,
        y: int = 0,
        resource: int = 0,
        hot: tuple[int, int] = (0, 0),
    ) -> int:
        body = pack("<IIII", scanout, x & 0xFFFFFFFF, y & 0xFFFFFFFF, 0) + pack("<IIII", resource, *hot, 0)
        return self.ask(command, body, queue=CURSOR).type

    def show(
        self, resource: int, *, width: int, height: int, scanout: int = 0, pixel_format: int = BGRX
    ) -> None:
        """Make an image and put all of it on a scanout."""
        assert self.create_2d(resource, width=width, height=height, pixel_format=pixel_format) == OK
        assert self.set_scanout(scanout, resource, (0, 0, width, height)) == OK

    def capture(self, scanout: int = 0) -> Frame:
        frame = self.host.drive(self.gpu.capture(scanout))
        assert isinstance(frame, Frame)
        return frame

    def poke(self, address: int, data: bytes) -> None:
        self.host.memory.data[address : address + len(data)] = data

    @property
    def status(self) -> dict[str, object]:
        return self.gpu.status()

    def count(self, name: str) -> int:
        """A number in the device's status."""
        value = self.gpu.status()[name]
        assert isinstance(value, int)
        return value
