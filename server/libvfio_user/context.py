"""One device on the library: a ``vfu_ctx_t`` with its callbacks, and the client's connection that it serves."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Protocol

from devices.contract import Irq, Region, RegionAccess
from protocol import HEADER_SIZE, Command, Header, PciRegion, Version, encode_request
from protocol.codec import PackableRequest
from protocol.header import MessageType
from server.libvfio_user import constants
from server.libvfio_user.constants import (
    PCI_HEADER_TYPE_NORMAL,
    ContextFlags,
    DeviceType,
    DmaRegister,
    DmaUnregister,
    LogLevel,
    LogMessage,
    PciType,
    Quiesce,
    RegionFlags,
    Reset,
    ResetType,
    Transport,
)
from server.libvfio_user.guard import FAILED, Guard
from server.libvfio_user.library import Library

REPLY_SIZE = 4096
"""Bytes that a reply to us may have; that to VERSION has about a hundred."""
MAX_RELAYED = 64 * 1024
"""Bytes of a message or a reply that fit in the socket whole."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the last resort, and the folder made in it is this user's alone
NO_FD = -1
_ACCESS_NAMES = (Command.REGION_READ.name, Command.REGION_WRITE.name)


class Served(Protocol):
    """What the library calls back. Exceptions become errnos; see :class:`server.libvfio_user.guard.Guard`."""

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes of a region."""

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        """Write a region; ``data`` is good during the call."""

    @property
    def command(self) -> str:
        """The name of what the library is serving, for the log."""

    def quiesce(self) -> bool:
        """The library is about to do what a busy device is in the way of. True: not yet, there will be word.

        That is for requests of ours only: a client's own would have the library's fd while it waits.
        """

    def dma_registered(self, iova: int, size: int) -> None:
        """The library has added a DMA region."""

    def dma_unregistered(self, iova: int) -> None:
        """The library is about to remove a DMA region: nothing may use it when this returns."""

    def reset(self) -> None:
        """The client asked for a reset."""

    def failed(self, command: str, error: Exception) -> int:
        """Log why a command failed, and give the errno."""

    def refused(self, reason: str) -> None:
        """The library itself has refused something."""


class Context:
    """Owns a ``vfu_ctx_t``, and everything that it keeps pointers to, until :meth:`close`. Not thread-safe."""

    def __init__(self, library: Library, served: Served, max_dma_regions: int) -> None:
        """An empty device; add regions and interrupts, then :meth:`adopt` a client. Raises OSError."""
        self._library = library
        self._served = served
        self._max_dma_regions = max_dma_regions
        self._guard = Guard(served.failed)
        self._kept: list[object] = []
        self._context: int | None = None
        self._connection = -1
        """The library's fd for its client."""
        self._client: socket.socket
        self._ours, self._theirs = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
        """A connection of our own to the library; its end has the library's fd while :meth:`ask` is under way."""
        self.lost = False
        """Whether the library has failed in the middle of a message: it serves no other."""
        self._waits = False
        """Whether the library keeps a message until :meth:`quiesced`."""

    def adopt(
        self, client: socket.socket, version: Version, regions: Sequence[Region], irqs: Sequence[Irq]
    ) -> None:
        """Have the library serve ``client``, which has said ``version`` to somebody else. Raises OSError.

        The library takes clients from a socket that it listens on itself, and waits for their VERSION. So it gets a
        connection of our own, that has sent one already; then the client's takes the place of that one, which
        stays for :meth:`ask`.
        """
        library = self._library
        with TemporaryDirectory(prefix="vgpud-", dir=_sockets_folder()) as name:
            path = Path(name) / "socket"
            self._context = context = library.create_ctx(
                Transport.SOCK, os.fsencode(path), ContextFlags.ATTACH_NB, None, DeviceType.PCI
            )
            self._set_up(context, regions, irqs)
            self._ours.connect(os.fspath(path))
            payload = version.pack()
            header = Header(0, Command.VERSION, HEADER_SIZE + len(payload), MessageType.COMMAND.value)
            self._ours.sendall(header.pack() + payload)
            library.attach_ctx(context)
        self._ours.setblocking(False)
        self._connection = library.get_poll_fd(context)
        os.dup2(self._connection, self._theirs.fileno(), inheritable=False)
        self._client = client
        self._answer()

    def run(self) -> None:
        """Serve the one message that is in the socket. Raises OSError: ENOTCONN where the client is gone."""
        try:
            self._library.run_ctx(self._context)  # type: ignore[arg-type]
        except OSError as error:
            self._waits = error.errno == errno.EBUSY
            self.lost = not self._waits
            raise
        finally:
            self._guard.raise_escaped()

    def ask(self, value: PackableRequest, fds: Sequence[int] = ()) -> bytes:
        """Have the library serve a request of ours, in the client's place; returns the payload of its reply.

        Raises OSError with the errno of an error reply, and EBUSY where the library waits for :meth:`quiesced`.
        """
        os.dup2(self._theirs.fileno(), self._connection, inheritable=False)
        socket.send_fds(self._ours, [encode_request(0, value)], fds)
        self.run()
        return self._answer()

    def relay(self, message: bytes) -> bytes:
        """Have the library serve a client's message that somebody else has read; returns its reply, if there is one.

        Messages and replies have MAX_RELAYED bytes at most. Raises OSError, but not for an error reply.
        """
        os.dup2(self._theirs.fileno(), self._connection, inheritable=False)
        self._ours.sendall(message)
        self.run()
        try:
            return self._ours.recv(MAX_RELAYED)
        except BlockingIOError:
            return b""

    def quiesced(self, code: int = 0) -> bytes:
        """Go on with what :meth:`ask` began, or drop it for the errno ``code``. As :meth:`ask`."""
        self._waits = False
        try:
            self._library.device_quiesced(self._context, code)  # type: ignore[arg-type]
        finally:
            self._guard.raise_escaped()
        return self._answer() if code == 0 else b""

    def _answer(self) -> bytes:
        """The library's answer to us; and the client is back in its place."""
        reply = self._ours.recv(REPLY_SIZE)
        os.dup2(self._client.fileno(), self._connection, inheritable=False)
        header = Header.unpack(reply)
        if header.is_error:
            raise OSError(header.error, f"libvfio-user: {os.strerror(header.error)}")
        return reply[HEADER_SIZE:]

    def close(self) -> None:
        """The library lets go of everything; nothing is called back any more."""
        self._guard.closed = True
        if self._waits:
            with suppress(OSError):
                self.quiesced(errno.ECANCELED)  # or the library would lose the message, and its memory
        if self._context is not None:
            context, self._context = self._context, None
            self._library.destroy_ctx(context)
        self._ours.close()
        self._theirs.close()
        self._kept.clear()

    def _set_up(self, context: int, regions: Sequence[Region], irqs: Sequence[Irq]) -> None:
        library, keep, guard = self._library, self._keep, self._guard
        library.setup_log(context, keep(LogMessage(guard("log", self._log_message))), LogLevel.ERR)
        library.pci_init(context, PciType.CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0)
        for index, region in enumerate(regions):
            if region.size:
                self._set_up_region(context, index, region)
        for index, irq in enumerate(irqs):
            library.setup_device_nr_irqs(context, index, irq.count)
        library.setup_device_reset_cb(context, keep(Reset(guard("DEVICE_RESET", self._reset))))
        library.setup_device_quiesce_cb(context, keep(Quiesce(guard(self._command, self._quiesce))))
        library.setup_device_dma(
            context,
            self._max_dma_regions,
            keep(DmaRegister(guard("DMA_MAP", self._dma_registered))),
            keep(DmaUnregister(guard("DMA_UNMAP", self._dma_unregistered))),
        )
        library.realize_ctx(context)

    def _set_up_region(self, context: int, index: int, region: Region) -> None:
        flags = RegionFlags.ALWAYS_CB
        if index != PciRegion.CONFIG:
            flags |= RegionFlags.MEM
        if region.access & RegionAccess.READ:
            flags |= RegionFlags.READ
        if region.access & RegionAccess.WRITE:
            flags |= RegionFlags.WRITE
        self._library.setup_region(
            context,
            index,
            region.size,
            self._keep(constants.RegionAccess(self._guard(_access_name, self._access(index)))),
            flags,
            None,  # clients hear of mappable areas from us
            0,
            NO_FD,
            0,
        )

    def _access(self, index: int) -> Callable[[Any, int, int, int, bool], int]:
        read, write = self._served.region_read, self._served.region_write
        string_at, memmove = ctypes.string_at, ctypes.memmove

        def access(_context: Any, buffer: int, count: int, offset: int, is_write: bool) -> int:
            if is_write:
                write(index, offset, memoryview(string_at(buffer, count)))
            else:
                memmove(buffer, read(index, offset, count), count)
            return count

        return access

    def _keep(self, callback: Any) -> Any:
        """The library keeps the pointer, so the object has to stay."""
        self._kept.append(callback)
        return callback

    def _quiesce(self, _context: Any) -> int:
        if self._served.quiesce():
            ctypes.set_errno(errno.EBUSY)
            return FAILED
        return 0

    def _reset(self, _context: Any, kind: int) -> int:
        # A lost connection ends the session, which sees to the device.
        if kind != ResetType.LOST_CONN:
            self._served.reset()
        return 0

    def _dma_registered(self, _context: Any, info: Any) -> None:
        iova = info.contents.iova
        self._served.dma_registered(iova.base or 0, iova.length)

    def _dma_unregistered(self, _context: Any, info: Any) -> None:
        iova = info.contents.iova
        self._served.dma_unregistered(iova.base or 0)

    def _log_message(self, _context: Any, _level: int, message: bytes) -> None:
        self._served.refused(message.decode(errors="replace").strip())

    def _command(self, _context: Any) -> str:
        return self._served.command


def _access_name(*arguments: Any) -> str:
    return _ACCESS_NAMES[arguments[-1]]


def _sockets_folder() -> str:
    """Where a socket may be for a moment. A container may have nothing to write to but shared memory."""
    try:
        return gettempdir()
    except FileNotFoundError:
        return SHARED_MEMORY
