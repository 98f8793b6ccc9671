"""What instances are doing: asked of the kernel, and of each server for a limited time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from uuid import UUID

import trio

from server.control_client import status
from server.control_protocol import ControlError
from server.instances.errors import InstanceError
from server.instances.identity import canonical_uuid
from server.instances.pid_file import holder
from server.instances.places import Places
from server.run_async import run_async

ANSWER_SECONDS = 5.0
"""How long a server has to say whether a client is attached. All are asked at the same time."""
_ACCEPTS = 0x10000
"""__SO_ACCEPTCONN, the flag of a listening socket in /proc/net/unix."""
_SOCKETS = Path("/proc/self/net/unix")


class State(Enum):
    """What an instance is doing; the value is what ``vgpud list`` says."""

    STOPPED = "stopped"
    FAILED = "failed"
    """Its server has ended without cleaning up, as one that was killed: its control socket is there still."""
    WAITING = "waiting"
    """systemd has its socket, and starts the server when the first client comes."""
    RUNNING = "running"
    SILENT = "silent"
    """Its process is there and does not answer."""
    HIDDEN = "hidden"
    """It is another user's, who does not let us look."""

    @property
    def ended(self) -> bool:
        """Whether there is neither a server nor anybody who would start one."""
        return self in (State.STOPPED, State.FAILED)


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What was seen of an instance; ``attached`` is whether a client is, None where nobody knows."""

    uuid: UUID
    state: State
    pid: int | None = None
    attached: bool | None = None


async def look(places: Places, uuids: Sequence[UUID]) -> list[InstanceStatus]:
    """What each of the instances is doing. Takes as long as one that does not answer, and no longer."""
    sockets = listening_paths()
    looks: dict[UUID, InstanceStatus] = {}

    async def one(uuid: UUID) -> None:
        looks[uuid] = await _look(places, uuid, sockets)

    async with trio.open_nursery() as nursery:
        for uuid in uuids:
            nursery.start_soon(one, uuid)
    return [looks[uuid] for uuid in uuids]


def look_at(places: Places, uuid: UUID) -> InstanceStatus:
    """What one instance is doing."""
    (seen,) = run_async(look, places, [uuid])
    return seen


def started(places: Places) -> list[UUID]:
    """The instances of which there is anything in the folder of sockets, leftovers included."""
    try:
        names = [path.name for path in places.runtime.iterdir()]
    except OSError:
        return []
    found = {canonical_uuid(name.removesuffix(".sock")) for name in names}
    return sorted(uuid for uuid in found if uuid is not None)


async def _look(places: Places, uuid: UUID, sockets: frozenset[str]) -> InstanceStatus:
    try:
        pid = holder(places.pid_file(uuid))
    except InstanceError:
        return InstanceStatus(uuid, State.HIDDEN)
    if pid is None:
        return InstanceStatus(uuid, _state_without_server(places, uuid, sockets), attached=False)
    try:
        with trio.fail_after(ANSWER_SECONDS):
            answer = await status(places.control(uuid))
    except (ControlError, trio.TooSlowError):
        return InstanceStatus(uuid, State.SILENT, pid)
    return InstanceStatus(uuid, State.RUNNING, pid, answer.get("client") is not None)


def _state_without_server(places: Places, uuid: UUID, sockets: frozenset[str]) -> State:
    if str(places.socket(uuid)) in sockets:
        return State.WAITING
    return State.FAILED if places.control(uuid).is_socket() else State.STOPPED


def listening_paths() -> frozenset[str]:
    """The paths at which a UNIX socket of this network namespace listens; asking, unlike connecting, wakes nobody."""
    try:
        lines = _SOCKETS.read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return frozenset()
    fields = [line.split(maxsplit=7) for line in lines]
    return frozenset(field[7] for field in fields if len(field) == 8 and int(field[3], 16) & _ACCEPTS)
