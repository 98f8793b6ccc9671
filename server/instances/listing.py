"""``vgpud types`` and ``vgpud list``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from server.exit_status import fail
from server.instances.capacity import available_instances, memory_available
from server.instances.commands import places_of
from server.instances.definition import Definition, as_json
from server.instances.errors import InstanceError
from server.instances.places import Places, choose_definitions
from server.instances.state import InstanceStatus, State, look, started
from server.instances.store import Store
from server.instances.types import TYPES, InstanceType
from server.run_async import run_async

_CLIENT = {True: "client attached", False: "no client", None: "client unknown"}
_HEADER = ("UUID", "TYPE", "STATE", "PID", "CLIENT", "SOCKET")
_DEFINED_HEADER = ("UUID", "TYPE", "START", *_HEADER[2:])


def run_types(arguments: argparse.Namespace) -> int:
    """List the types. Raises InstanceError."""
    definitions, worst = _definitions(Store(choose_definitions(arguments.config_dir, os.environ)))
    promised = sum(definition.video_memory for definition in definitions)
    available = memory_available()
    listing = [
        _type_json(known, available_instances(known.video_memory({}), available, promised)) for known in TYPES
    ]
    if arguments.json:
        sys.stdout.write(json.dumps(listing, indent=2) + "\n")
        return worst
    for entry in listing:
        sys.stdout.write(_TYPE_TEXT.format(**{**entry, "video_memory": entry["video_memory"] >> 20}))
    return worst


_TYPE_TEXT = """{name}: {description}
  screens              {screens}, {width}x{height}
  video memory         {video_memory} MiB
  CPU weight           {cpu_weight}
  available instances  {available_instances}
"""


def _type_json(known: InstanceType, available: int) -> dict[str, Any]:
    return {
        "name": known.name,
        "description": known.description,
        "device": known.device_text({}),
        "screens": known.screens,
        "width": known.width,
        "height": known.height,
        "video_memory": known.video_memory({}),
        "cpu_weight": known.cpu_weight,
        "available_instances": available,
    }


def run_list(arguments: argparse.Namespace) -> int:
    """List instances, and what they are doing. Raises InstanceError."""
    places = places_of(arguments)
    store = Store(places.definitions)
    definitions, worst = _definitions(store)
    defined = store.uuids()
    wanted = defined if arguments.defined else sorted({*defined, *started(places)})
    looks = run_async(look, places, wanted)
    if not arguments.defined:
        looks = [seen for seen in looks if seen.state is not State.STOPPED]
    by_uuid = {definition.uuid: definition for definition in definitions}
    rows = [(seen, by_uuid.get(seen.uuid)) for seen in looks]
    if arguments.json:
        listing = [_instance_json(seen, definition, places) for seen, definition in rows]
        sys.stdout.write(json.dumps(listing, indent=2) + "\n")
    elif rows:
        table = [_instance_texts(seen, definition, places) for seen, definition in rows]
        if arguments.defined:
            starts = ("?" if definition is None else definition.start for _, definition in rows)
            table = [(*row[:2], start, *row[2:]) for row, start in zip(table, starts, strict=True)]
        _write_table([_DEFINED_HEADER if arguments.defined else _HEADER, *table])
    return worst


def _definitions(store: Store) -> tuple[list[Definition], int]:
    """Those that are well, and the exit status: the others have been complained about."""
    definitions, worst = [], 0
    for uuid in store.uuids():
        try:
            definitions.append(store.read(uuid))
        except InstanceError as error:
            worst = fail(error)
    for stranger in store.strangers():
        worst = fail(f"{stranger}: defines nothing; rename it to a UUID in lower case, .json, or remove it")
    return definitions, worst


def _instance_json(seen: InstanceStatus, definition: Definition | None, places: Places) -> dict[str, Any]:
    return {
        "uuid": str(seen.uuid),
        "definition": None if definition is None else as_json(definition),
        "device": None if definition is None else definition.device,
        "state": seen.state.value,
        "pid": seen.pid,
        "client_attached": seen.attached,
        "socket": str(places.socket(seen.uuid)),
        "control": str(places.control(seen.uuid)),
        "metrics": str(places.metrics(seen.uuid)) if definition is not None and definition.metrics else None,
    }


def _instance_texts(seen: InstanceStatus, definition: Definition | None, places: Places) -> tuple[str, ...]:
    running = seen.state in (State.RUNNING, State.SILENT)
    return (
        str(seen.uuid),
        "?" if definition is None else definition.type.name,
        seen.state.value,
        "-" if seen.pid is None else str(seen.pid),
        _CLIENT[seen.attached] if running else "-",
        str(places.socket(seen.uuid)),
    )


def _write_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
