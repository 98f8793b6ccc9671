"""Whether a device's BARs have room behind the port that it was plugged in.

Firmware leaves each empty port a window of addresses, 2 MiB unless the port asks for more (``pref32-reserve``), and a
guest cannot always make that larger afterwards. Whether it could is not to be seen through QMP: a BAR has no address
either while no driver has enabled the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.hotplug.answers import as_object, as_objects, number_of, truth_of
from server.hotplug.guest_devices import devices_of
from server.hotplug.qmp import Qmp

_ADDRESSES = 1 << 64


async def bar_without_room(qmp: Qmp, device: str) -> int | None:
    """The bytes of the largest BAR that no window of the port takes; None where all fit, or nothing is known.

    Raises HotplugError.
    """
    for bus in as_objects(await qmp.execute("query-pci"), "query-pci"):
        for port in devices_of(bus):
            bridge = as_object(port.get("pci_bridge", {}), "pci_bridge")
            for found in as_objects(bridge.get("devices", []), "devices"):
                if found.get("qdev_id") == device:
                    return max(_too_large(found, as_object(bridge.get("bus"), "bus")), default=None)
    return None


def _too_large(device: Mapping[str, Any], windows: Mapping[str, Any]) -> Iterator[int]:
    if "memory_range" not in windows or "prefetchable_range" not in windows:
        return
    memory, prefetchable = (_size(windows, key) for key in ("memory_range", "prefetchable_range"))
    for region in as_objects(device.get("regions", []), "regions"):
        if region.get("type") == "memory":
            size = number_of(region, "size", _ADDRESSES)
            if size > (max(memory, prefetchable) if truth_of(region, "prefetch") else memory):
                yield size


def _size(windows: Mapping[str, Any], key: str) -> int:
    """A window that is closed begins behind its end."""
    window = as_object(windows[key], key)
    return max(0, number_of(window, "limit", _ADDRESSES) + 1 - number_of(window, "base", _ADDRESSES))
