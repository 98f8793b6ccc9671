"""Plugging a device into a running guest; where anything fails on the way, nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from server.guest.machine import vfio_user_pci
from server.hotplug.detach import take_out
from server.hotplug.errors import HotplugError
from server.hotplug.guest_devices import address_of, check_client_exists, choose_id, is_present
from server.hotplug.memory import check_memory_is_shared
from server.hotplug.ports import ADVICE, choose_bus
from server.hotplug.qmp import CommandFailed, Qmp
from server.hotplug.server_process import ServerOptions, started

ADD_SECONDS = 60.0
"""How long QEMU may take: it asks the server a number of things, and waits 5 s for each answer."""
NUMBERING_SECONDS = 5.0
"""How long to wait for the number of the bus, which a guest's firmware gives within its first seconds."""
CLEAN_UP_SECONDS = 15.0
_PAUSE_SECONDS = 0.1
_NO_SUCH_BUS = ("not found", "does not support hotplugging")


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


async def attach(qmp: Qmp, wish: Wish) -> Attachment:
    """Plug a device into the guest. Raises HotplugError; then, or when it is cancelled, nothing is left behind."""
    await check_client_exists(qmp)
    await check_memory_is_shared(qmp)
    bus = await choose_bus(qmp, wish.bus)
    device = await choose_id(qmp, wish.device)
    if wish.socket_path is not None:
        if not wish.socket_path.is_socket():
            path = wish.socket_path
            raise HotplugError(
                f"{path}: no server listens there: start one with vgpud serve --socket-path {path}"
            )
        return Attachment(device, bus, await _plug_in(qmp, device, bus, wish.socket_path), None)
    async with started(wish.server, device, qmp.path) as server:
        address = await _plug_in(qmp, device, bus, server.path, server.leave)
        return Attachment(device, bus, address, server.pid)


async def _plug_in(
    qmp: Qmp, device: str, bus: str, server: Path, leave_server: Callable[[], None] = lambda: None
) -> str | None:
    """Add the device and return its address. The server is left as soon as, and as long as, QEMU depends on it."""
    was_added = False
    try:
        await _add(qmp, device, bus, server)
        was_added = True
        address = await _numbered_address(qmp, device)
    except BaseException:
        if not await _is_taken_back(qmp, device, otherwise=not was_added):
            leave_server()  # QEMU aborts when it loses a server in use
        raise
    leave_server()
    return address


async def _add(qmp: Qmp, device: str, bus: str, server: Path) -> None:
    try:
        await qmp.execute("device_add", _options(device, bus, server), within=ADD_SECONDS)
    except CommandFailed as error:
        if any(text in error.description for text in _NO_SUCH_BUS):
            raise HotplugError(f"--bus {bus}: {error.description}: {ADVICE}") from None
        raise


def _options(device: str, bus: str, server: Path) -> Mapping[str, object]:
    return {**vfio_user_pci(server.absolute()), "id": device, "bus": bus}


async def _numbered_address(qmp: Qmp, device: str) -> str | None:
    with trio.move_on_after(NUMBERING_SECONDS):
        while (address := await address_of(qmp, device)) is None:
            await trio.sleep(_PAUSE_SECONDS)
        return address
    return None


async def _is_taken_back(qmp: Qmp, device: str, *, otherwise: bool) -> bool:
    """Unplug the device if it is there, also in a cancelled scope; ``otherwise`` where QEMU does not say if it is."""
    gone = otherwise
    with (
        trio.CancelScope(deadline=trio.current_time() + CLEAN_UP_SECONDS, shield=True),
        suppress(HotplugError),
    ):
        gone = not await is_present(qmp, device)
        if not gone:
            await take_out(qmp, device, CLEAN_UP_SECONDS)
            gone = True
    return gone
