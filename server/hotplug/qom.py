"""QEMU's object model as QMP shows it: what there is at a path, and what it says of itself."""

from __future__ import annotations

import re
from typing import Any

from server.hotplug.answers import as_objects, text_of
from server.hotplug.qmp import Qmp

PERIPHERAL = "/machine/peripheral"
"""Where the devices are that have an id, by that id."""
PERIPHERAL_ANON = "/machine/peripheral-anon"
"""Where those are that came from the user, too, but have no id."""

_CHILD = re.compile(r"child<(?P<type>.+)>")


async def properties(qmp: Qmp, path: str) -> dict[str, str]:
    """The types of the properties at ``path``, by name. Raises HotplugError."""
    listing = as_objects(await qmp.execute("qom-list", {"path": path}), "qom-list")
    return {text_of(item, "name"): text_of(item, "type") for item in listing}


async def children(qmp: Qmp, path: str) -> dict[str, str]:
    """The types of the objects below ``path``, by name. Raises HotplugError."""
    found = {name: _CHILD.fullmatch(kind) for name, kind in (await properties(qmp, path)).items()}
    return {name: match["type"] for name, match in found.items() if match}


async def value(qmp: Qmp, path: str, name: str) -> Any:
    """The value of a property. Raises HotplugError."""
    return await qmp.execute("qom-get", {"path": path, "property": name})


async def types(qmp: Qmp, implements: str) -> set[str]:
    """The types of objects that are ``implements``; none where QEMU knows no such type. Raises HotplugError."""
    listing = await qmp.execute("qom-list-types", {"implements": implements, "abstract": False})
    return {text_of(item, "name") for item in as_objects(listing, "qom-list-types")}
