"""One device on the library: a ``vfu_ctx_t`` with its callbacks, and the client's connection that it serves."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Protocol

from devices.contract import Irq, Region, RegionAccess
from protocol import HEADER_SIZE, Command, Header, Version
from protocol.header import MessageType
from server.libvfio_user import constants
from server.libvfio_user.constants import (
    PCI_HEADER_TYPE_NORMAL,
    ContextFlags,
    DeviceType,
    DmaRegister,
    DmaUnregister,
    Iovec,
    LogLevel,
    LogMessage,
    PciType,
    Quiesce,
    RegionFlags,
    RegionIndex,
    Reset,
    ResetType,
    Transport,
)
from server.libvfio_user.guard import FAILED, Guard
from server.libvfio_user.library import Library

REPLY_SIZE = 4096
"""Bytes that the library's VERSION reply may have; it has about a hundred."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the last resort, and the folder made in it is this user's alone
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
        """The library is about to do what a busy device is in the way of. True: not yet, there will be word."""

    def dma_registered(self, iova: int, size: int) -> None:
        """The library has added a DMA region."""

    def dma_unregistered(self, iova: int, size: int) -> None:
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

    def adopt(
        self, client: socket.socket, version: Version, regions: Sequence[Region], irqs: Sequence[Irq]
    ) -> None:
        """Have the library serve ``client``, which has said ``version`` to somebody else. Raises OSError.

        The library takes clients from a socket that it listens on itself, and waits for their VERSION. So it gets a
        connection of our own, that has sent one already; then the client's takes the place of that one.
        """
        library = self._library
        with TemporaryDirectory(prefix="vgpud-", dir=_sockets_folder()) as name:
            path = Path(name) / "socket"
            self._context = context = library.create_ctx(
                Transport.SOCK, os.fsencode(path), ContextFlags.ATTACH_NB, None, DeviceType.PCI
            )
            self._set_up(context, regions, irqs)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stand_in:
                stand_in.connect(os.fspath(path))
                payload = version.pack()
                header = Header(0, Command.VERSION, HEADER_SIZE + len(payload), MessageType.COMMAND.value)
                stand_in.sendall(header.pack() + payload)
                library.attach_ctx(context)
                stand_in.setblocking(False)
                reply = Header.unpack(stand_in.recv(REPLY_SIZE))
                if reply.is_error:
                    raise OSError(reply.error, f"libvfio-user: {os.strerror(reply.error)}")
                os.dup2(client.fileno(), library.get_poll_fd(context), inheritable=False)

    def run(self) -> None:
        """Serve the one message that is in the socket.

        Raises OSError: EBUSY where it waits for :meth:`quiesced`, ENOTCONN where the client is gone.
        """
        try:
            self._library.run_ctx(self._context)  # type: ignore[arg-type]
        finally:
            self._guard.raise_escaped()

    def quiesced(self, code: int = 0) -> None:
        """Go on with the message that had to wait, or give it up for the errno ``code``. Raises OSError."""
        try:
            self._library.device_quiesced(self._context, code)  # type: ignore[arg-type]
        finally:
            self._guard.raise_escaped()

    def close(self) -> None:
        """The library lets go of everything; nothing is called back any more."""
        self._guard.closed = True
        if self._context is not None:
            context, self._context = self._context, None
            self._library.destroy_ctx(context)
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
        if index != RegionIndex.CONFIG:
            flags |= RegionFlags.MEM
        if region.access & RegionAccess.READ:
            flags |= RegionFlags.READ
        if region.access & RegionAccess.WRITE:
            flags |= RegionFlags.WRITE
        areas = (Iovec * len(region.mmap_areas))(*(Iovec(*area) for area in _areas(region)))
        shared = region.shared
        self._library.setup_region(
            context,
            index,
            region.size,
            self._keep(constants.RegionAccess(self._guard(_access_name, self._access(index)))),
            flags,
            areas if len(areas) else None,
            len(areas),
            -1 if shared is None else shared.fd,
            0 if shared is None else shared.offset,
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
        self._served.dma_unregistered(iova.base or 0, iova.length)

    def _log_message(self, _context: Any, _level: int, message: bytes) -> None:
        self._served.refused(message.decode(errors="replace").strip())

    def _command(self, _context: Any) -> str:
        return self._served.command


def _areas(region: Region) -> list[tuple[int, int]]:
    return [(area.offset, area.length) for area in region.mmap_areas]


def _access_name(*arguments: Any) -> str:
    return _ACCESS_NAMES[arguments[-1]]


def _sockets_folder() -> str:
    """Where a socket may be for a moment. A container may have nothing to write to but shared memory."""
    try:
        return gettempdir()
    except FileNotFoundError:
        return SHARED_MEMORY
