"""What keeps QEMU from migrating the guest, on its command line: :mod:`server.qemu.migration_guard`."""

from __future__ import annotations

import json
import subprocess

from server.launch.qemu_options import QemuCommand
from server.qemu.migration_guard import DRIVER, guard_node

_READABLE = "(read-only):"
_SECONDS = 120


def with_migration_guard(command: QemuCommand) -> QemuCommand:
    """The command with what keeps the guest from being migrated and saved."""
    return command.adding(("-blockdev", json.dumps(guard_node())))


def knows_image(program: str) -> bool:
    """Whether this QEMU was built with the format of the image."""
    asked = [program, "-drive", "format=help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_SECONDS)
    _, _, formats = done.stdout.partition(_READABLE)
    return DRIVER in formats.split()
