"""The types of virtual GPU that there are: a device with its screens and memory, and its share of the CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devices.registry import size
from server.instances.errors import InstanceError


@dataclass(frozen=True, slots=True)
class InstanceType:
    """A type. ``model`` and ``options`` are the device as in ``vgpud serve --device``.

    ``memory_option`` is the option of the model that bounds what the guest may take from the host, in bytes: the
    type's video memory. ``cpu_weight`` is its share of the CPUs next to other instances, systemd's CPUWeight (1 to
    10000; whoever says nothing has 100).
    """

    name: str
    description: str
    model: str
    options: Mapping[str, str]
    memory_option: str
    cpu_weight: int

    @property
    def screens(self) -> int:
        """How many screens it has."""
        return int(self.options.get("scanouts", "1"))

    @property
    def width(self) -> int:
        """Pixels per row of each screen."""
        return int(self.options["width"])

    @property
    def height(self) -> int:
        """Rows of each screen."""
        return int(self.options["height"])

    def video_memory(self, attrs: Mapping[str, str]) -> int:
        """Bytes of video memory of an instance with ``attrs``. Raises ValueError."""
        return size(attrs.get(self.memory_option, self.options[self.memory_option]))

    def device_text(self, attrs: Mapping[str, str]) -> str:
        """What ``vgpud serve --device`` takes for an instance with ``attrs``, which win over the type's options."""
        return ",".join((self.model, *(f"{key}={value}" for key, value in {**self.options, **attrs}.items())))


def _virtio(
    number: int, description: str, scanouts: int, width: int, height: int, **more: str
) -> InstanceType:
    """The ``number`` is that of shares: of 64 MiB of video memory, and of the CPU weight of an ordinary service."""
    options = {"scanouts": str(scanouts), "width": str(width), "height": str(height)}
    memory = {"max_hostmem": f"{64 * number}M"}
    return InstanceType(
        f"vgpud-virtio-{number}",
        description,
        "virtio-gpu",
        {**options, **memory, **more},
        "max_hostmem",
        100 * number,
    )


TYPES = (
    _virtio(1, "virtio GPU for consoles and servers", 1, 1280, 800),
    _virtio(2, "virtio GPU for a desktop", 1, 1920, 1080),
    _virtio(4, "virtio GPU for a desktop with two screens", 2, 1920, 1080),
    _virtio(8, "virtio GPU for a 4K desktop, whose screen is shown without a copy", 1, 3840, 2160, blob="on"),
)


def find_type(name: str) -> InstanceType:
    """The type of that name. Raises InstanceError."""
    for found in TYPES:
        if found.name == name:
            return found
    raise InstanceError(f"there is no type {name!r}; choose of {', '.join(known.name for known in TYPES)}")
