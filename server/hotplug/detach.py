"""Unplugging a device from a running guest, which has to agree."""

from __future__ import annotations

from contextlib import nullcontext

import trio

from server.hotplug.answers import as_object, text_of, truth_of
from server.hotplug.errors import HotplugError
from server.hotplug.guard import take_down_guard
from server.hotplug.guest_devices import find_device, find_in_regions, has_msix, is_present
from server.hotplug.qmp import CommandFailed, Event, Qmp, QmpError
from server.hotplug.server_process import END_SECONDS, PRIVATE_SOCKET, find_server
from server.one_line import one_line

HANG_SECONDS = 5.0
"""How long a guest is waited for whose device has no server that could be seen: it hangs."""
_DELETED = "DEVICE_DELETED"
_REFUSED = "DEVICE_UNPLUG_GUEST_ERROR"
_ASKED_ALREADY = "in the process of unplug"


class NoConsent(HotplugError):  # noqa: N818 - what the user reads
    """The guest runs, and has not said whether it lets go of the device."""


async def detach(qmp: Qmp, wanted: str | None, within: float, *, force: bool = False) -> str:
    """Unplug the device ``wanted``, or the only one, and return its id.

    Waits ``within`` seconds for the guest, and for the end of the server that attach started. Raises HotplugError.
    """
    device = await find_device(qmp, wanted)
    socket = await find_in_regions(qmp, device, PRIVATE_SOCKET)
    server = find_server(device, qmp.path, socket)
    if socket is not None and server is None:
        within = min(within, HANG_SECONDS)
    with server or nullcontext():
        try:
            await take_out(qmp, device, within, force=force)
        except (NoConsent, QmpError) as error:
            was_lost = server is None or (isinstance(error, NoConsent) and await server.ended(0))
            if socket is None or not was_lost:
                raise
            raise HotplugError(
                f"the server of {device} has ended, so the guest's driver hangs, or QEMU aborts: end QEMU, and start "
                "the guest again"
            ) from None
        await take_down_guard(qmp)
        if server is not None and not await server.ended(END_SECONDS):
            raise HotplugError(
                f"the guest has let go of {device}, but its server goes on: end it with kill {server.pid}"
            )
    return device


async def take_out(qmp: Qmp, device: str, within: float, *, force: bool = False) -> None:
    """Ask for the device and wait until the guest has let it go. Raises HotplugError where it does not."""
    if not force and await has_msix(qmp, device):
        raise HotplugError(
            f"{device} has MSI-X, and QEMU up to 11.1 aborts when such a device is unplugged: start its server with "
            "--device virtio-gpu,msix=off, as vgpud attach does, or use --force if your QEMU is fixed"
        )

    def concerns_it(event: Event) -> bool:
        return event.name in (_DELETED, _REFUSED) and event.data.get("device") == device

    with qmp.watching(concerns_it) as answer:
        await _ask(qmp, device)
        with trio.move_on_after(within):
            await qmp.until(answer)
    if answer.event is None and await is_present(qmp, device):
        raise await _why_not(qmp, device, within)
    if answer.event is not None and answer.event.name == _REFUSED:
        raise HotplugError(
            f"the guest refuses to let go of {device}: end what uses it there, and detach it again"
        )


async def _ask(qmp: Qmp, device: str) -> None:
    try:
        await qmp.execute("device_del", {"id": device})
    except CommandFailed as error:
        if _ASKED_ALREADY not in error.description:
            raise


async def _why_not(qmp: Qmp, device: str, within: float) -> HotplugError:
    state = as_object(await qmp.execute("query-status"), "query-status")
    if not truth_of(state, "running"):
        return HotplugError(
            f"the guest cannot let go of {device} while it is {one_line(text_of(state, 'status'))}: resume it first"
        )
    return NoConsent(
        f"the guest has not let go of {device} in {within:g} s: it may still be booting, or know no PCI hot-plug, or "
        "hang because the device's server has ended; the request stands, and vgpud detach waits for it again"
    )
