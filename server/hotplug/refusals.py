"""What QEMU says when it does not take a device, and what there is to do then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.hotplug.errors import HotplugError
from server.hotplug.ports import other_choice
from server.hotplug.qmp import CommandFailed, Qmp

_OF_THE_BUS = ("not found", "does not support hotplugging", "no slot/function available")
_OUT_OF_REACH = ("Permission denied", "No such file or directory")
_NOBODY_LISTENS = "Connection refused"
_BUSY = "Device or resource busy"
_OF_ANOTHER_KIND = ("timed out", "Protocol wrong type")


@dataclass(frozen=True, slots=True)
class Plug:
    """What QEMU is asked to add: a device on a bus, at a server that the user has started, or we have."""

    device: str
    bus: str
    server: Path
    is_users: bool = False


async def explained(qmp: Qmp, error: CommandFailed, plug: Plug) -> HotplugError:
    """``error``, with the fix where it is known. Raises HotplugError where QEMU is no longer there."""
    reason = error.description
    if any(text in reason for text in _OF_THE_BUS):
        return HotplugError(f"--bus {plug.bus}: {reason}: {await other_choice(qmp, plug.bus)}")
    fix = _of_the_users_server(reason, plug.server) if plug.is_users else _of_our_server(reason)
    return error if fix is None else HotplugError(f"{error}: {fix}")


def _of_our_server(reason: str) -> str | None:
    if any(text in reason for text in _OUT_OF_REACH):
        return (
            "QEMU runs as another user, or in a container: start vgpud serve where it can reach the socket, and name "
            "that with --socket-path"
        )
    return None


def _of_the_users_server(reason: str, path: Path) -> str | None:
    if any(text in reason for text in _OUT_OF_REACH):
        return (
            f"QEMU runs as another user, or in a container, where it does not reach {path}: put the server's socket "
            "where it does"
        )
    if _NOBODY_LISTENS in reason:
        return f"the server has ended: start one with vgpud serve --socket-path {path}"
    if _BUSY in reason:
        return (
            f"another client has the server at {path}: detach that first, or leave --socket-path out for a server of "
            "its own"
        )
    if any(text in reason for text in _OF_ANOTHER_KIND):
        return f"is {path} the socket of a vfio-user server, the --socket-path of vgpud serve?"
    return None
