"""A device on libvfio-user in a process of its own (``c/sgl_server.c``), and the only client that it has."""

from __future__ import annotations

import select
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

from protocol import (
    HEADER_SIZE,
    BitmapRequest,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
    Header,
    MessageType,
    Version,
)
from server.guest.cache import cache_dir

TIMEOUT = 120.0
"""Seconds after which a wait for the server has failed: it answers at once, or never."""

_SOURCE = Path(__file__).parent / "c" / "sgl_server.c"
_DIRTY_PAGES = 14
"""VFIO_USER_DIRTY_PAGES, which is no longer in the specification."""
_DIRTY_PAGES_START = (8).to_bytes(4, "little") + (1).to_bytes(4, "little")


class Piece(NamedTuple):
    """An entry of a list: what the device finds through its iovec."""

    length: int
    data: bytes


class LibraryRegion(NamedTuple):
    """A region as the library told the device of it."""

    iova: int
    size: int
    prot: int
    shared: bool


def build(folder: Path) -> Path:
    """Compile the server. ``make libvfio-user`` gets the library."""
    library = cache_dir() / "libvfio-user"
    archive = library / "lib" / "libvfio-user.a"
    assert archive.exists(), "libvfio-user is not there: run 'make libvfio-user' first"
    program = folder / "sgl_server"
    build = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{library / 'include'}", "-o", str(program)]
    subprocess.run([*build, str(_SOURCE), str(archive), "-ljson-c"], check=True)
    return program


def pattern(address: int, count: int) -> bytes:
    """What the client answers to a DMA_READ: every byte says where it is from."""
    return bytes((address + index) * 7 % 251 for index in range(count))


class SglServer:
    """The server and its client: requests go by the socket, what the device shall do by standard input.

    Where either is answered with an error, OSError is raised. ``written`` are the DMA_WRITE messages that came.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        """Start ``program``, with its socket in ``folder``, and connect."""
        self.written: list[DmaWrite] = []
        self._device, end = socket.socketpair()
        self._device.settimeout(TIMEOUT)
        self._answers = self._device.makefile("rb")
        path = folder / "sgl.sock"
        with end:
            self.process = subprocess.Popen(
                [str(program), str(path)], stdin=end.fileno(), stdout=end.fileno()
            )
        self._client = socket.socket(socket.AF_UNIX)
        self._client.settimeout(TIMEOUT)
        self._replies = self._client.makefile("rb")
        try:
            assert self._answers.readline() == b"ready\n"
            self._client.connect(str(path))
            self._request(Command.VERSION, Version(0, 0).pack())
        except BaseException:
            self.kill()
            raise

    def map(self, iova: int, size: int, prot: int, fd: int | None = None, offset: int = 0) -> None:
        """DMA_MAP; ``fd`` stays the caller's."""
        request = DmaMap(iova, size, DmaMapFlags(prot), offset)
        self._request(Command.DMA_MAP, request.pack(), () if fd is None else (fd,))

    def unmap(self, iova: int, size: int) -> None:
        """DMA_UNMAP of one range."""
        self._request(Command.DMA_UNMAP, DmaUnmap(iova, size).pack())

    def unmap_all(self) -> None:
        """DMA_UNMAP of everything."""
        self._request(Command.DMA_UNMAP, DmaUnmap(flags=DmaUnmapFlags.ALL).pack())

    def unmap_and_report(self, iova: int, size: int, page_size: int) -> bytes:
        """DMA_UNMAP of a region; returns its dirty bitmap, in whole u64s."""
        bitmap = BitmapRequest(page_size, -(-size // page_size // 64) * 8)
        request = DmaUnmap(iova, size, DmaUnmapFlags.GET_DIRTY_BITMAP, bitmap)
        return DmaUnmapReply.unpack(self._request(Command.DMA_UNMAP, request.pack())).bitmap

    def log_dirty_pages(self) -> None:
        """Let the library log dirty pages from now on."""
        self._request(_DIRTY_PAGES, _DIRTY_PAGES_START)

    def get(self, address: int, length: int, prot: int) -> int:
        """The number of a new list."""
        return int(self._ask(f"get {address} {length} {prot}"))

    def show(self, number: int) -> list[Piece]:
        """The entries of a list."""
        parts = (one.split(":") for one in self._ask(f"show {number}").split())
        return [Piece(int(length), bytes.fromhex(data)) for length, data in parts]

    def fill(self, number: int, data: bytes) -> None:
        """Write to the memory of a list."""
        assert int(self._ask(f"fill {number} {data.hex()}")) == len(data)

    def put(self, number: int) -> None:
        """Give a list back."""
        self._ask(f"put {number}")

    def send(self, address: int, data: bytes) -> None:
        """Write to the client by message."""
        self._ask(f"send {address} {data.hex()}")

    def fetch(self, address: int, length: int) -> bytes:
        """Read from the client by message: the client answers with its :func:`pattern`."""
        return bytes.fromhex(self._ask(f"fetch {address} {length}"))

    @property
    def regions(self) -> list[LibraryRegion]:
        """What was registered with the device, and not unregistered, by IOVA."""
        parts = ([int(number) for number in one.split(":")] for one in self._ask("regions").split())
        return sorted(LibraryRegion(iova, size, prot, bool(shared)) for iova, size, prot, shared in parts)

    @property
    def open_fds(self) -> int:
        """How many fds the server has."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> None:
        """The client goes away, and the server ends: as it should, or this raises."""
        self._disconnect()
        try:
            assert self.process.wait(TIMEOUT) == 0
        finally:
            self.kill()

    def wait(self) -> int:
        """The exit status, once the server has ended by itself."""
        status: int = self.process.wait(TIMEOUT)
        return status

    def kill(self) -> None:
        """End the server in any case."""
        self._disconnect()
        self.process.kill()
        self.process.wait()

    def _disconnect(self) -> None:
        for one in (self._replies, self._answers, self._client, self._device):
            one.close()

    def _ask(self, line: str) -> str:
        self._device.sendall(f"{line}\n".encode())
        while self._device not in (ready := select.select([self._device, self._client], [], [], TIMEOUT)[0]):
            assert ready, f"no answer to {line}"
            self._answer_message()
        verdict, _, rest = self._answers.readline().decode().strip().partition(" ")
        if verdict == "error":
            raise OSError(int(rest), line)
        assert verdict == "ok", f"the server has ended, asked to {line}"
        return rest

    def _answer_message(self) -> None:
        header, payload = self._receive()
        reply: DmaReadReply | DmaWriteReply
        if header.command == Command.DMA_WRITE:
            write = DmaWrite.unpack(payload)
            self.written.append(write)
            reply = DmaWriteReply(write.address, len(write.data))
        else:
            read = DmaRead.unpack(payload)
            reply = DmaReadReply(read.address, pattern(read.address, read.count))
        self._send(header.message_id, reply.command, MessageType.REPLY, reply.pack(), ())

    def _request(self, command: int, payload: bytes, fds: tuple[int, ...] = ()) -> bytes:
        self._send(0, command, MessageType.COMMAND, payload, fds)
        header, reply = self._receive()
        assert header.is_reply
        assert header.command == command
        if header.is_error:
            raise OSError(header.error, f"the reply to command {command}")
        return reply

    def _send(self, number: int, command: int, kind: int, payload: bytes, fds: tuple[int, ...]) -> None:
        message = Header(number, command, HEADER_SIZE + len(payload), kind).pack() + payload
        assert socket.send_fds(self._client, [message], fds) == len(message)

    def _receive(self) -> tuple[Header, bytes]:
        start = self._replies.read(HEADER_SIZE)
        assert len(start) == HEADER_SIZE, "the server has ended"
        header = Header.unpack(start)
        return header, self._replies.read(header.size - HEADER_SIZE)
