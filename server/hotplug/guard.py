"""Keeping QEMU from migrating a guest that has a GPU: what ``vgpud run`` has on QEMU's command line, while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from server.hotplug.errors import HotplugError
from server.hotplug.guest_devices import has_devices
from server.hotplug.qmp import CommandFailed, Qmp
from server.qemu.migration_guard import NODE, guard_node

Warn = Callable[[str], None]
"""Takes one line for the user."""

_THERE_ALREADY = "Duplicate nodes"
_NO_BLOCKER = "disallowing migration blocker"
_ONLY_MIGRATABLE = "--only-migratable"


async def put_up_guard(qmp: Qmp, warn: Warn) -> None:
    """Have QEMU refuse to migrate and to save the guest; where it cannot be made to, warn.

    Raises HotplugError where the guest is being migrated, or has to be migratable.
    """
    try:
        await qmp.execute("blockdev-add", guard_node())
    except CommandFailed as error:
        reason = error.description
        if _THERE_ALREADY in reason:
            return
        if _NO_BLOCKER not in reason:
            warn(
                f"QEMU cannot be kept from migrating the guest ({reason}); do not migrate it: nothing refuses"
            )
            return
        if _ONLY_MIGRATABLE in reason:
            raise HotplugError(
                "a guest with a virtual GPU cannot be migrated: start QEMU without -only-migratable"
            ) from None
        raise HotplugError(
            "the guest is being migrated or saved: attach when that has ended, to the guest where it runs then"
        ) from None


async def take_down_guard(qmp: Qmp) -> None:
    """Let QEMU migrate the guest again if it has no vfio-user device any more. Raises HotplugError."""
    if await has_devices(qmp):
        return
    with suppress(CommandFailed):  # there is none, or the user has put it to some use
        await qmp.execute("blockdev-del", {"node-name": NODE})
