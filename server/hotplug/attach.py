"""Plugging a device into a running guest; where anything fails on the way, nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from server.hotplug.detach import take_out
from server.hotplug.errors import HotplugError
from server.hotplug.guard import Warn, put_up_guard, take_down_guard
from server.hotplug.guest_devices import address_of, check_client_exists, choose_id, has_msix, is_present
from server.hotplug.memory import check_memory_is_shared
from server.hotplug.ports import choose_bus
from server.hotplug.qmp import CommandFailed, Qmp
from server.hotplug.refusals import Plug, explained
from server.hotplug.room import bar_without_room
from server.hotplug.server_process import ServerOptions, started
from server.qemu.client import vfio_user_pci

ADD_SECONDS = 60.0
"""How long QEMU may take: it asks the server a number of things, and waits 5 s for each answer."""
NUMBERING_SECONDS = 5.0
"""How long to wait for the number of the bus, which a guest's firmware gives within its first seconds."""
CLEAN_UP_SECONDS = 15.0
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Wish:
    """What to plug in: the device of the server that listens at ``socket_path``, or of one to be started."""

    device: str | None = None
    bus: str | None = None
    socket_path: Path | None = None
    server: ServerOptions = field(default_factory=ServerOptions)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A device that was plugged in.

    ``address`` is where the guest sees it, None while the guest has not numbered the bus. ``server`` is the pid of
    the server that was started, if one was.
    """

    id: str
    bus: str
    address: str | None
    server: int | None


def _ignore(_: str) -> None: ...


async def attach(qmp: Qmp, wish: Wish, warn: Warn = _ignore) -> Attachment:
    """Plug a device into the guest; ``warn`` is told what does not keep it from being there.

    Raises HotplugError; then, or when it is cancelled, nothing is left behind, or ``warn`` is told that the
    device is.
    """
    await check_client_exists(qmp)
    await check_memory_is_shared(qmp)
    bus = await choose_bus(qmp, wish.bus)
    device = await choose_id(qmp, wish.device)
    if wish.socket_path is None:
        async with started(wish.server, device, qmp.path) as server, _guarded(qmp, warn):
            plug = Plug(device, bus, server.path)
            address = await _plug_in(qmp, plug, warn, server.leave)
            return Attachment(device, bus, address, server.pid)
    path = wish.socket_path
    if not path.is_socket():
        raise HotplugError(
            f"{path}: no server listens there: start one with vgpud serve --socket-path {path}"
        )
    async with _guarded(qmp, warn):
        plug = Plug(device, bus, path, is_users=True)
        return Attachment(device, bus, await _plug_in(qmp, plug, warn), None)


@asynccontextmanager
async def _guarded(qmp: Qmp, warn: Warn) -> AsyncIterator[None]:
    """Have the guest not migrated from here on, unless the block fails and leaves it without a device."""
    try:
        await put_up_guard(qmp, warn)
        yield
    except BaseException:
        with _clean_up():
            await take_down_guard(qmp)
        raise


@contextmanager
def _clean_up() -> Iterator[None]:
    """In a block that ends in time, also in a cancelled scope, and without a word."""
    with (
        trio.CancelScope(deadline=trio.current_time() + CLEAN_UP_SECONDS, shield=True),
        suppress(HotplugError),
    ):
        yield


async def _plug_in(
    qmp: Qmp, plug: Plug, warn: Warn, leave_server: Callable[[], None] = lambda: None
) -> str | None:
    """Add the device and return its address. The server is left as soon as, and as long as, QEMU depends on it."""
    was_added = False
    try:
        await _add(qmp, plug)
        was_added = True
        address = await _numbered_address(qmp, plug.device)
        with suppress(HotplugError):  # the device is there, and is no worse for what nobody knows of it
            await _warn_of_limits(qmp, plug, warn)
    except BaseException:
        if not await _is_taken_back(qmp, plug.device, otherwise=not was_added):
            leave_server()  # QEMU aborts when it loses a server in use
            warn(f"{plug.device} could not be taken back: it is in the guest, and served")
        raise
    leave_server()
    return address


async def _warn_of_limits(qmp: Qmp, plug: Plug, warn: Warn) -> None:
    """Say what the device can be expected not to do. Raises HotplugError where QEMU does not say how it is."""
    if await has_msix(qmp, plug.device):
        warn(
            f"{plug.device} has MSI-X, and cannot be unplugged: QEMU up to 11.1 aborts then; detach needs a server "
            "with --device virtio-gpu,msix=off"
        )
    if size := await bar_without_room(qmp, plug.device):
        warn(
            f"{plug.device} has a BAR of {size >> 10} KiB, more than firmware has left {plug.bus}: where the guest has "
            f"no room for it, give that port pref32-reserve={2 * size >> 10}K,mem-reserve=4M"
        )


async def _add(qmp: Qmp, plug: Plug) -> None:
    options = {**vfio_user_pci(plug.server.absolute()), "id": plug.device, "bus": plug.bus}
    try:
        await qmp.execute("device_add", options, within=ADD_SECONDS)
    except CommandFailed as error:
        raise await explained(qmp, error, plug) from None


async def _numbered_address(qmp: Qmp, device: str) -> str | None:
    with trio.move_on_after(NUMBERING_SECONDS):
        while (address := await address_of(qmp, device)) is None:
            await trio.sleep(_PAUSE_SECONDS)
        return address
    return None


async def _is_taken_back(qmp: Qmp, device: str, *, otherwise: bool) -> bool:
    """Unplug the device if it is there, also in a cancelled scope; ``otherwise`` where QEMU does not say if it is."""
    gone = otherwise
    with _clean_up():
        gone = not await is_present(qmp, device)
        if not gone:
            await take_out(qmp, device, CLEAN_UP_SECONDS)
            gone = True
    return gone
