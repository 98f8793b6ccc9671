"""Whether the guest's memory is shared: with private memory the device would have to ask QEMU for every byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.hotplug import qom
from server.hotplug.answers import UnexpectedAnswer, as_object, as_objects, number_of, text_of, truth_of
from server.hotplug.errors import HotplugError
from server.hotplug.qmp import Qmp
from server.one_line import one_line

_OBJECTS = "/objects/"
_SIZE_LIMIT = 1 << 64
_DEFAULT_BACKEND = ".ram"
"""What the names of the backends end with that QEMU makes where the user gave none: pc.ram, mach-virt.ram."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A memory backend: its size in bytes, and whether others may map it."""

    size: int
    shared: bool


async def check_memory_is_shared(qmp: Qmp) -> None:
    """See to it that all of the guest's memory is shared. Raises HotplugError, which says how to share it."""
    backends = await _backends(qmp)
    main = await _main_memory(qmp)
    added = await _added_memory(qmp)
    # Without a backend of the machine, each NUMA node has one, and QMP does not say which they are.
    for path in added | ({main} if main else backends.keys()):
        if path not in backends:
            raise UnexpectedAnswer(f"{one_line(path)} is in no list of memory backends")
        if not backends[path].shared:
            raise HotplugError(_how_to_share(path, backends[path]))


async def _backends(qmp: Qmp) -> Mapping[str, Backend]:
    """By path. Raises HotplugError."""
    listing = as_objects(await qmp.execute("query-memdev"), "query-memdev")
    return {
        _OBJECTS + text_of(item, "id"): Backend(number_of(item, "size", _SIZE_LIMIT), truth_of(item, "share"))
        for item in listing
        if "id" in item
    }


async def _main_memory(qmp: Qmp) -> str:
    """The path of the machine's backend, empty where the memory belongs to NUMA nodes. Raises HotplugError."""
    path = await qom.value(qmp, "/machine", "memory-backend")
    return text_of({"memory-backend": path}, "memory-backend")


async def _added_memory(qmp: Qmp) -> set[str]:
    """The paths of the backends of DIMMs and the like. Raises HotplugError."""
    listing = as_objects(await qmp.execute("query-memory-devices"), "query-memory-devices")
    found = [as_object(item.get("data"), "data") for item in listing]
    return {text_of(data, "memdev") for data in found if "memdev" in data}


def _how_to_share(path: str, backend: Backend) -> str:
    name = one_line(path.removeprefix(_OBJECTS))
    if not name.endswith(_DEFAULT_BACKEND):
        return f"the guest's memory {name} is private: start QEMU with share=on in the -object that has id={name}"
    size = _as_option(backend.size)
    return (
        f"the guest's memory is private: start QEMU with -object memory-backend-memfd,id=mem,size={size},share=on "
        "and -machine memory-backend=mem"
    )


def _as_option(size: int) -> str:
    for suffix, shift in (("G", 30), ("M", 20)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{suffix}"
    return str(size)
