"""``vgpud define``, ``undefine``, ``start`` and ``stop``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from uuid import UUID, uuid4

from server.exit_status import fail
from server.instances.capacity import memory_total
from server.instances.definition import Definition, parse_device
from server.instances.errors import InstanceError
from server.instances.identity import parse_uuid
from server.instances.manager import Manager, choose_manager
from server.instances.pid_file import locked
from server.instances.places import Places, choose_places
from server.instances.state import InstanceStatus, State, look_at
from server.instances.store import Store
from server.instances.types import find_type


def places_of(arguments: argparse.Namespace) -> Places:
    """The folders that a command is about. Raises InstanceError."""
    return choose_places(arguments.config_dir, arguments.runtime_dir, os.environ)


def run_define(arguments: argparse.Namespace) -> int:
    """Define an instance. Raises InstanceError."""
    places = places_of(arguments)
    manager = choose_manager(arguments.manager, places)
    uuid = uuid4() if arguments.uuid is None else parse_uuid(arguments.uuid)
    chosen = find_type(arguments.type)
    attrs = {} if arguments.device is None else parse_device(arguments.device, chosen)
    if arguments.metrics:
        _check_metrics()
    definition = Definition(uuid, chosen, arguments.auto, attrs, arguments.transport, arguments.metrics)
    if chosen.memory_option in attrs:
        _check_memory(definition)
    store = Store(places.definitions)
    store.add(definition)
    try:
        manager.defined(definition)
    except InstanceError:
        store.remove(uuid)
        raise
    sys.stdout.write(f"{uuid}\n")
    return 0


def _check_metrics() -> None:
    from server.metrics.listen import MetricsUnavailable  # noqa: PLC0415 - most definitions are without
    from server.metrics.serving import check_library  # noqa: PLC0415

    try:
        check_library()
    except MetricsUnavailable as error:
        raise InstanceError(error) from error


def _check_memory(definition: Definition) -> None:
    """Refuse what can only be a mistake: `vgpud types` would have room for nothing from then on."""
    wanted, total = definition.video_memory, memory_total()
    if wanted > total:
        raise InstanceError(
            f"{definition.type.memory_option}={wanted >> 20}M is more than this host's memory of {total >> 20} MiB; "
            "choose less"
        )


def run_undefine(arguments: argparse.Namespace) -> int:
    """Forget an instance, with all that is left of it. Raises InstanceError."""
    places, uuid = places_of(arguments), parse_uuid(arguments.uuid)
    manager = choose_manager(arguments.manager, places)
    store = Store(places.definitions)
    seen = _look_at(places, uuid)
    if not seen.state.ended:
        raise InstanceError(f"{uuid} is {seen.state.value}; 'vgpud stop {uuid}' first")
    if not places.folder(uuid).is_dir():
        store.remove(uuid)
    else:
        with locked(places.pid_file(uuid)):  # nobody starts it meanwhile
            store.remove(uuid)
            places.socket(uuid).unlink(missing_ok=True)
            shutil.rmtree(places.folder(uuid), ignore_errors=True)
    manager.undefined(uuid)
    return 0


def run_start(arguments: argparse.Namespace) -> int:
    """Start an instance, or all that start by themselves. Raises InstanceError."""
    places = places_of(arguments)
    manager = choose_manager(arguments.manager, places)
    store = Store(places.definitions)
    if not arguments.auto:
        _start(manager, places, store.read(parse_uuid(arguments.uuid)))
        return 0
    worst = 0
    for uuid in store.uuids():
        try:
            definition = store.read(uuid)
            if definition.auto and look_at(places, uuid).state.ended:
                _start(manager, places, definition)
        except InstanceError as error:
            worst = fail(error)
    return worst


def _start(manager: Manager, places: Places, definition: Definition) -> None:
    seen = _look_at(places, definition.uuid)
    if seen.pid is not None:
        raise InstanceError(f"{definition.uuid} is running already, as process {seen.pid}")
    manager.start(definition)
    sys.stdout.write(f"{places.socket(definition.uuid)}\n")


def run_stop(arguments: argparse.Namespace) -> int:
    """Stop an instance. Raises InstanceError."""
    places, uuid = places_of(arguments), parse_uuid(arguments.uuid)
    manager = choose_manager(arguments.manager, places)
    seen = _look_at(places, uuid)
    if seen.state is State.STOPPED:
        raise InstanceError(f"{uuid} is not running")
    if not arguments.force:
        _check_that_nobody_suffers(seen)
    manager.stop(uuid, force=arguments.force)
    left = look_at(places, uuid)
    if left.pid is not None:
        raise InstanceError(f"{uuid} runs on as process {left.pid}: another --manager has started it")
    return 0


def _look_at(places: Places, uuid: UUID) -> InstanceStatus:
    seen = look_at(places, uuid)
    if seen.state is State.HIDDEN:
        raise InstanceError(f"{uuid} is another user's; do this as that user")
    return seen


def _check_that_nobody_suffers(seen: InstanceStatus) -> None:
    if seen.attached:
        raise InstanceError(
            f"a client is attached to {seen.uuid}, and QEMU aborts without it; end that, or give --force"
        )
    if seen.attached is None:
        raise InstanceError(
            f"{seen.uuid} does not answer, so nobody knows whether a client is attached; --force stops it anyway"
        )
