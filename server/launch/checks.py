"""What cannot work is refused before anything is started, in one line that names the fix."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from server.guest.errors import GuestError
from server.guest.qemu import OLDEST, inspect_qemu
from server.launch.errors import LaunchError
from server.launch.qemu_options import MACHINE, QemuCommand, machine_type
from server.launch.settings import is_on
from server.launch.shared_memory import is_memory_of_device
from server.qemu.client import CLIENT

_MACHINES = re.compile(r"q35|pc|pc-q35-.+|pc-i440fx-.+")
_EXPRESS = re.compile(r"q35|pc-q35-.+")
_OTHER_TARGET = re.compile(r"qemu-system-(?!x86_64$|i386$)\w+")
_QEMU = re.compile(r"qemu-system-\w+|qemu-kvm")
_HELP = ("help", "?")
_ENCRYPTION = ("confidential-guest-support", "memory-encryption")
_CONFIG_OF_MEMORY = re.compile(r"^\s*\[\s*(machine|memory|numa|object)\b", re.MULTILINE)
_OPTION_OF_CONFIG = {"memory": "m"}
_KEY_OF_CONFIG = re.compile(r"^\s*([\w-]+)\s*=", re.MULTILINE)

_REFUSED = {
    "incoming": "a guest with a virtual GPU cannot be migrated; start it afresh, without -incoming",
    "loadvm": "a snapshot has no state of the virtual GPU; start the guest afresh, without -loadvm",
    "only-migratable": "a guest with a virtual GPU cannot be migrated; leave -only-migratable out",
    "daemonize": "QEMU and the GPU's server end together, so QEMU has to stay in the foreground; leave -daemonize out",
}
_IOMMUS = {"intel-iommu": "caching-mode", "amd-iommu": "dma-remap"}
"""Emulated IOMMUs, and what has to be on for them to tell QEMU's VFIO devices what the guest maps."""


def check_command(command: QemuCommand, *, root_ports: bool) -> None:
    """Raise LaunchError for a command line that does not go together with the GPU."""
    if other := _OTHER_TARGET.fullmatch(Path(command.program).name):
        raise LaunchError(f"{other[0]}: only guests for x86 can be started; give qemu-system-x86_64")
    for name, reason in _REFUSED.items():
        if command.has(name):
            raise LaunchError(reason)
    for path in command.values("readconfig"):
        _check_config(path)
    _check_machine(command, root_ports)
    _check_iommus(command)


def check_program(command: QemuCommand) -> None:
    """Raise LaunchError unless the program is a QEMU with the vfio-user client."""
    program = command.program
    needed = f"{'.'.join(map(str, OLDEST))} or later with {CLIENT}"
    if shutil.which(program) is None:
        raise LaunchError(f"{program}: no such program; install QEMU {needed}, or give its path")
    try:
        inspect_qemu((program,))
    except GuestError as error:
        if any(_QEMU.fullmatch(Path(word).name) for word in command.words[1:]):
            raise LaunchError(
                f"{program} is no QEMU; put what QEMU is to run under in front of vgpud: "
                f"{Path(program).name} ... vgpud run -- qemu-system-x86_64 ..."
            ) from error
        raise LaunchError(f"{error}; give a QEMU {needed}") from error


def _check_machine(command: QemuCommand, root_ports: bool) -> None:
    machine = command.merged(*MACHINE, implied="type")
    kind = machine_type(command)
    if kind in _HELP:
        return
    for key in _ENCRYPTION:
        if key in machine:
            raise LaunchError(
                f"-machine {key}: encrypted memory cannot be shared with the virtual GPU; leave it out"
            )
    if kind == "microvm":
        if not is_on(machine.get("pcie")):
            raise LaunchError(
                "-machine microvm: has no PCI bus for the virtual GPU; write -machine microvm,pcie=on"
            )
    elif not _MACHINES.fullmatch(kind):
        raise LaunchError(f"-machine {kind}: not a PC with a PCI bus for the virtual GPU; take -machine q35")
    if root_ports and not _EXPRESS.fullmatch(kind):
        raise LaunchError(
            f"--root-port: goes with -machine q35, not {kind}; leave it out, or change the machine"
        )


def _check_iommus(command: QemuCommand) -> None:
    for device in command.settings("device", implied="driver"):
        needed = _IOMMUS.get(str(device.get("driver")))
        if needed is not None and not device.is_on(needed):
            driver = device.get("driver")
            raise LaunchError(
                f"-device {driver}: add {needed}=on: the virtual GPU has to know what the guest maps"
            )


def _check_config(path: str) -> None:
    """QEMU reads the file as more options; ours have to know those that say what the memory is."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise LaunchError(f"-readconfig {path}: {error.strerror}") from error
    if match := _CONFIG_OF_MEMORY.search(text):
        section = match[1]
        option = _OPTION_OF_CONFIG.get(section, section)
        raise LaunchError(
            f"-readconfig {path}: move its section [{section}] to the command line, as -{option}"
        )
    for key in _KEY_OF_CONFIG.findall(text):
        if is_memory_of_device(key):
            raise LaunchError(
                f"-readconfig {path}: move the device with {key} to the command line, as -device"
            )
