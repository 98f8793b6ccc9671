"""The guest's user space: an initramfs with busybox, modules, programs, and an init that takes commands.

The init mounts the usual file systems, runs the caller's boot script, and then serves commands on the second
serial port, so that the kernel's messages on the first never mix with a command's output. A command is a line
``TAG BASE64``: a shell script, base64-encoded. Its output is followed by a line ``TAG STATUS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.guest.cpio import CpioArchive
from server.guest.elf import libraries_of
from server.guest.kernel import Kernel, Module
from server.guest.programs import GuestPrograms, Program, applets

READY = "guest-ready"
"""The line on the command port that says that the guest takes commands."""

_LIBRARY_FOLDER = "lib64"
_EXECUTABLE = 0o755

_INIT = """\
#!/bin/sh
export PATH=/bin HOME=/ LD_LIBRARY_PATH=/{libraries} TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
exec </dev/console >/dev/console 2>&1
. /boot.sh
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo {ready} >&3
while read -r tag script <&3; do
    echo "$script" | base64 -d >/tmp/command.sh
    sh /tmp/command.sh </dev/null >&3 2>&1
    echo "$tag $?" >&3
done
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What goes into an initramfs.

    ``load`` names kernel modules that are loaded at boot, in this order and after what they depend on;
    ``carry`` names modules that are there for ``modprobe``. ``boot`` is a shell script that runs before
    commands are taken. ``programs`` go to /bin, and ``files`` are paths in the guest with their content.
    """

    kernel: Kernel
    programs: GuestPrograms
    load: tuple[str, ...] = ("virtio_pci", "virtio_gpu")
    carry: tuple[str, ...] = ()
    boot: str = ""
    extra_programs: tuple[Program, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def build(self) -> bytes:
        """Return the initramfs. Raises GuestError where a module or a library is missing."""
        archive = CpioArchive()
        for folder in ("proc", "sys", "dev", "tmp"):
            archive.add_folder(folder)
        self._add_commands(archive)
        self._add_modules(archive)
        boot = "".join(f"modprobe {name}\n" for name in self._loaded()) + self.boot
        archive.add_file("boot.sh", boot.encode() + b"\n")
        init = _INIT.format(libraries=_LIBRARY_FOLDER, ready=READY)
        archive.add_file("init", init.encode(), _EXECUTABLE)
        for path, content in self.files.items():
            archive.add_file(path, content, _EXECUTABLE)
        return archive.pack()

    def write(self, path: Path) -> Path:
        """Write the initramfs to ``path``, and return that."""
        path.write_bytes(self.build())
        return path

    def _loaded(self) -> list[str]:
        return [module.name for module in self.kernel.modules(self.load)]

    def _add_commands(self, archive: CpioArchive) -> None:
        archive.add_file("bin/busybox", self.programs.busybox.read_bytes(), _EXECUTABLE)
        for applet in applets(self.programs.busybox):
            archive.add_symlink(f"bin/{applet}", "busybox")
        for program in (self.programs.modetest, *self.extra_programs):
            archive.add_file(f"bin/{program.path.name}", program.path.read_bytes(), _EXECUTABLE)
            for name, path in libraries_of(program.path, program.library_folders).items():
                if f"{_LIBRARY_FOLDER}/{name}" not in archive:
                    archive.add_file(f"{_LIBRARY_FOLDER}/{name}", path.read_bytes(), _EXECUTABLE)

    def _add_modules(self, archive: CpioArchive) -> None:
        folder = f"lib/modules/{self.kernel.release}"
        modules = self.kernel.modules((*self.load, *self.carry))
        for module in modules:
            archive.add_file(f"{folder}/{module.name}.ko", module.code)
        archive.add_file(f"{folder}/modules.dep", modules_dep(modules).encode())


def modules_dep(modules: Sequence[Module]) -> str:
    """Write depmod's ``modules.dep``: each module, then all that it depends on, in reverse order of loading.

    ``modules`` holds each module after what it depends on.
    """
    lines = []
    closure: dict[str, list[str]] = {}
    for module in modules:
        below: dict[str, None] = {}
        for name in module.depends:
            if name in closure:
                below |= dict.fromkeys([*closure[name], name])
        closure[module.name] = list(below)
        lines.append(f"{module.name}.ko:" + "".join(f" {name}.ko" for name in reversed(below)))
    return "\n".join(lines) + "\n"
