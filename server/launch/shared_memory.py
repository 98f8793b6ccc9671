"""Making all memory of a guest shared, so that the server reaches it as QEMU does.

What is changed, and what is refused, follows one rule: the guest's memory stays where the user put it. Anonymous memory
is as anonymous when it is shared. A file is not: with ``share=off`` the guest's writes stay in memory, with
``share=on`` they go to the file; so that is for the user to say, except where the file is one that QEMU makes and
unlinks in a folder that is in memory itself (tmpfs, hugetlbfs).

Sources: ``backends/hostmem*.c``, ``hw/core/machine.c`` and ``hw/core/numa.c`` of QEMU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from server.launch.errors import LaunchError
from server.launch.memory_folder import file_system_in_memory, is_folder
from server.launch.memory_size import memory_size
from server.launch.qemu_options import MACHINE, Option, QemuCommand
from server.launch.settings import Settings

BACKEND = "vgpud-memory"
"""The id of the memory backend that is added where the command line has none."""

_MEMDEV = "memdev"
_RAM, _MEMFD, _FILE = "memory-backend-ram", "memory-backend-memfd", "memory-backend-file"


def with_shared_memory(command: QemuCommand) -> QemuCommand:
    """The command with all memory of the guest shared. Raises LaunchError where that is not possible."""
    guest_memory = set(_backends_of_guest_memory(command))
    options = tuple(
        _shared(option, guest_memory) if option.name == "object" else option for option in command.options
    )
    command = replace(command, options=options)
    return command if _has_backend(command) else _with_backend(command)


def _backends_of_guest_memory(command: QemuCommand) -> Iterator[str]:
    """The ids of the memory backends that the guest sees, its DIMMs, NVDIMMs, pmem and CXL memory among them.

    QEMU hands over the fd of each, also where it has mapped it privately itself: the device would write to the file.
    """
    yield str(command.merged(*MACHINE, implied="type").get("memory-backend"))
    yield from _numa_backends(command)
    for device in command.settings("device", implied="driver"):
        yield from (str(value) for key, value in device.items() if is_memory_of_device(key))


def is_memory_of_device(key: str) -> bool:
    """Whether a device's property names a memory backend, as do nvdimm's memdev and cxl-type3's volatile-memdev."""
    return key == _MEMDEV or key.endswith(f"-{_MEMDEV}")


def _numa_backends(command: QemuCommand) -> list[str]:
    nodes = command.settings("numa", implied="type")
    return [str(node.get(_MEMDEV)) for node in nodes if node.get(_MEMDEV) is not None]


def _has_backend(command: QemuCommand) -> bool:
    """Whether the command line says what the memory is; QEMU makes a private backend where it does not."""
    return "memory-backend" in command.merged(*MACHINE, implied="type") or bool(_numa_backends(command))


def _shared(option: Option, guest_memory: set[str]) -> Option:
    settings = option.settings("qom-type")
    kind = settings.get("qom-type")
    if kind == _RAM:
        shared = _share_on(settings.having("qom-type", _MEMFD))
    elif kind == _MEMFD and not settings.is_on("share", default=True):
        shared = _share_on(settings)
    elif kind == _FILE and not settings.is_on("share") and str(settings.get("id")) in guest_memory:
        shared = _share_on(_in_memory(settings))
    else:
        return option
    return replace(option, value=str(shared))


def _share_on(settings: Settings) -> Settings:
    return settings.having("share", True if settings.is_json else "on")


def _in_memory(settings: Settings) -> Settings:
    """The settings of a private file backend, if sharing it writes to no file that anyone has."""
    path = str(settings.get("mem-path"))
    if file_system_in_memory(path):
        return settings
    raise LaunchError(
        f"-object {_FILE},id={settings.get('id')}: add share=on: the virtual GPU needs memory that is shared, and "
        f"what the guest writes then goes to {path}"
    )


def _with_backend(command: QemuCommand) -> QemuCommand:
    """The command with a shared backend in place of the one that QEMU would make."""
    name, size = command.unused_identifier(BACKEND), memory_size(command)
    common: tuple[tuple[str, object], ...] = (("id", name), ("size", size), ("share", "on"))
    kind: tuple[tuple[str, object], ...] = (("qom-type", _MEMFD),)
    if paths := command.values("mem-path"):
        kind = (("qom-type", _FILE), ("mem-path", _mem_path(paths[-1], size)))
    backend = Settings((*kind, *common), implied="qom-type")
    return command.without("mem-path").adding(
        ("-object", str(backend)), ("-machine", f"memory-backend={name}")
    )


def _mem_path(path: str, size: int) -> str:
    if file_system_in_memory(path):
        return path
    if is_folder(path):
        raise LaunchError(
            f"-mem-path {path}: the guest's memory has to be shared, and would be written to that disk; give a "
            "folder on tmpfs or hugetlbfs, for example /dev/shm, or leave -mem-path out"
        )
    raise LaunchError(
        f"-mem-path {path}: with memory that is shared the guest writes to that file; if it may, give in its place "
        f"-object {_FILE},id=mem,size={size},mem-path={path},share=on -machine memory-backend=mem"
    )
