"""Metrics of the device: its screens, and what its model's status has of what is known here by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from devices.contract import Device
from devices.display import ScanoutInfo
from server.metrics.families import Family, Kind, counter, gauge

_FRAMES = "Times that the guest put another picture on a screen."
_FLUSHES = "Times that the guest said that a picture on a screen has changed."
_NUMBERS = (
    ("driver_ok", Kind.GAUGE, "vgpud_virtio_driver_ok", "Whether a driver has set the device up."),
    ("needs_reset", Kind.GAUGE, "vgpud_virtio_needs_reset", "Whether a driver broke the device."),
    ("bytes_transferred", Kind.COUNTER, "vgpud_gpu_transferred_bytes", "Pixels copied from guest memory."),
    ("resources", Kind.GAUGE, "vgpud_gpu_resources", "Resources that the guest has."),
    ("hostmem", Kind.GAUGE, "vgpud_gpu_host_memory_bytes", "Host memory that the guest's resources take."),
    ("max_hostmem", Kind.GAUGE, "vgpud_gpu_host_memory_limit_bytes", "Host memory that they may take."),
)
"""Key of the status, type, name of the family, help."""


def device_families(device: Device) -> list[Family]:
    """What ``device`` shows and has done. Raises what its model raises, which is a fault of the model."""
    display = device.display
    families = [] if display is None else _screens(display.scanouts)
    status = device.status()
    for key, kind, name, text in _NUMBERS:
        value = status.get(key)
        if isinstance(value, int):
            families.append(Family(name, kind, text).add(int(value)))
    families += [_commands(status), _refused(status), _buffers(status)]
    return families


def _screens(scanouts: Sequence[ScanoutInfo]) -> list[Family]:
    families = [
        counter("vgpud_scanout_flips", _FRAMES),
        counter("vgpud_scanout_flushes", _FLUSHES),
        gauge("vgpud_scanout_connected", "Whether the screen is plugged in."),
        gauge("vgpud_scanout_width_pixels", "Width of what the screen shows, 0 for nothing."),
        gauge("vgpud_scanout_height_pixels", "Height of what the screen shows, 0 for nothing."),
    ]
    for screen in scanouts:
        values = (screen.flips, screen.flushes, int(screen.connected), screen.width, screen.height)
        for family, value in zip(families, values, strict=True):
            family.add(value, {"scanout": str(screen.index)})
    return families


def _commands(status: Mapping[str, object]) -> Family:
    family = counter("vgpud_gpu_commands", "Commands that the guest's driver sent, by what they are.")
    for name, count in _counts(status, "commands"):
        family.add(count, {"command": name})
    return family


def _refused(status: Mapping[str, object]) -> Family:
    family = counter("vgpud_gpu_command_errors", "Commands that were answered with an error.")
    for name, count in _counts(status, "refused"):
        command, _, response = name.partition(": ")
        family.add(count, {"command": command, "response": response})
    return family


def _buffers(status: Mapping[str, object]) -> Family:
    family = counter("vgpud_virtqueue_buffers", "Buffers of each virtqueue that were used.")
    buffers = status.get("buffers")
    if isinstance(buffers, list):
        for index, count in enumerate(buffers):
            family.add(count, {"queue": str(index)})
    return family


def _counts(status: Mapping[str, object], key: str) -> list[tuple[str, int]]:
    counts = status.get(key)
    return list(counts.items()) if isinstance(counts, Mapping) else []
