"""Unplugging a device from a running guest, which has to agree."""

from __future__ import annotations

from contextlib import nullcontext

import trio

from server.hotplug.answers import as_object, text_of, truth_of
from server.hotplug.errors import HotplugError, one_line
from server.hotplug.guest_devices import find_device, has_msix, is_present
from server.hotplug.qmp import CommandFailed, Event, Qmp
from server.hotplug.server_process import END_SECONDS, find_server

_DELETED = "DEVICE_DELETED"
_REFUSED = "DEVICE_UNPLUG_GUEST_ERROR"
_ASKED_ALREADY = "in the process of unplug"


async def detach(qmp: Qmp, wanted: str | None, within: float, *, force: bool = False) -> str:
    """Unplug the device ``wanted``, or the only one, and return its id.

    Waits ``within`` seconds for the guest, and for the end of the server that attach started. Raises HotplugError.
    """
    device = await find_device(qmp, wanted)
    server = find_server(device, qmp.path)
    with server or nullcontext():
        await take_out(qmp, device, within, force=force)
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
        raise HotplugError(await _why_not(qmp, device, within))
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


async def _why_not(qmp: Qmp, device: str, within: float) -> str:
    state = as_object(await qmp.execute("query-status"), "query-status")
    if not truth_of(state, "running"):
        return f"the guest cannot let go of {device} while it is {one_line(text_of(state, 'status'))}: resume it first"
    return (
        f"the guest has not let go of {device} in {within:g} s: it may still be booting, or know no PCI hot-plug; "
        "the request stands, and vgpud detach waits for it again"
    )
