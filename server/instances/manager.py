"""What starts and stops instances: systemd, or this program itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol
from uuid import UUID

from server.instances.definition import Definition
from server.instances.direct import Direct
from server.instances.errors import InstanceError
from server.instances.places import SYSTEM_DEFINITIONS, SYSTEM_RUNTIME, Places
from server.instances.systemd import Systemd

MANAGERS = ("auto", "systemd", "direct")
BOOTED = Path("/run/systemd/system")
"""There where systemd is the service manager (sd_booted(3))."""


class Manager(Protocol):
    """Starts and stops instances; whatever cannot be done raises InstanceError."""

    def defined(self, definition: Definition) -> None:
        """The instance has just been defined."""

    def undefined(self, uuid: UUID) -> None:
        """The instance, which does not run, is no longer defined."""

    def start(self, definition: Definition) -> None:
        """Start its server, and return when it listens."""

    def stop(self, uuid: UUID, *, force: bool) -> None:
        """End its server, and return when it has ended; ``force`` is for one that does not want to."""


def choose_manager(name: str, places: Places) -> Manager:
    """The manager of that name of :data:`MANAGERS`. Raises InstanceError.

    ``auto`` is systemd where it runs and root asks, for the folders that its units know.
    """
    if name == "systemd" and not places.are_the_systems:
        raise InstanceError(
            f"the units of systemd know {SYSTEM_DEFINITIONS} and {SYSTEM_RUNTIME} only; leave out --config-dir and "
            "--runtime-dir, and be root"
        )
    if name == "systemd" or (
        name == "auto" and os.geteuid() == 0 and BOOTED.is_dir() and places.are_the_systems
    ):
        return Systemd()
    return Direct(places)
