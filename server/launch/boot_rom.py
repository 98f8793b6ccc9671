"""The ROM with which firmware draws on a GPU, where there is one for it.

QEMU gives its own bochs-display a ROM by the device's class; its vfio-user client takes one by name. The ROM is QEMU's,
and not every QEMU comes with it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from server.launch.qemu_options import QemuCommand

ROMS = {"bochs-display": "vgabios-bochs-display.bin"}
"""Device models that firmware can draw on, and the ROM that does it (``hw/display/bochs-display.c`` of QEMU)."""

PROPERTY = "romfile"
"""The property of QEMU's PCI devices that names a ROM."""

_SECONDS = 120


def boot_rom(command: QemuCommand, device: str) -> str | None:
    """The ROM for ``device`` (``NAME[,OPTION=VALUE...]``); None where it has none, or the user chose one for all."""
    rom = ROMS.get(device.partition(",")[0])
    if rom is None or any(PROPERTY in value for value in command.values("global")):
        return None
    return rom


def has_rom(command: QemuCommand, rom: str) -> bool:
    """Whether this QEMU finds the file: it looks in the folders of -L, and in its own."""
    folders = [word for folder in command.values("L") for word in ("-L", folder)]
    asked = [command.program, *folders, "-L", "help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_SECONDS)
    return any(Path(folder, rom).is_file() for folder in done.stdout.splitlines())
