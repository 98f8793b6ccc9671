"""``vgpud serve-instance UUID``: what a unit of systemd, or :mod:`server.instances.direct`, runs for an instance."""

from __future__ import annotations

import argparse
import os
from collections.abc import MutableMapping
from contextlib import ExitStack
from uuid import UUID

from server.instances.definition import Definition
from server.instances.errors import InstanceError
from server.instances.identity import canonical_uuid
from server.instances.pid_file import held
from server.instances.places import Places, choose_places, make_private_folder
from server.instances.store import Store
from server.metrics.listen import UNIX

METRICS_MODE = 0o666
"""The folder says who may reach it."""
_FIRST_PASSED_FD = 3
"""SD_LISTEN_FDS_START."""


def run_serve_instance(arguments: argparse.Namespace) -> int:
    """Serve an instance as it is defined until a signal says stop. Raises InstanceError."""
    from server.cli import build_parser  # noqa: PLC0415 - which in turn knows this command
    from server.serve import run_serve  # noqa: PLC0415

    uuid = _uuid(arguments.uuid)
    places = choose_places(arguments.config_dir, arguments.runtime_dir, os.environ)
    passed = passed_listener(os.environ, os.getpid())
    with ExitStack() as stack:
        make_private_folder(places.folder(uuid))
        stack.enter_context(held(places.pid_file(uuid)))
        definition = Store(places.definitions).read(uuid)
        return run_serve(build_parser().parse_args(serve_command(definition, places, passed)))


def _uuid(text: str) -> UUID:
    """Units of two spellings would be two servers."""
    uuid = canonical_uuid(text)
    if uuid is None:
        raise InstanceError(
            f"{text!r} is no UUID in lower case; write it as 01234567-89ab-cdef-0123-456789abcdef"
        )
    return uuid


def serve_command(definition: Definition, places: Places, passed: int | None) -> list[str]:
    """The command line of ``vgpud serve`` for an instance, on the listening fd ``passed`` if there is one."""
    uuid = definition.uuid
    metrics = (
        ["--metrics", f"{UNIX}{places.metrics(uuid)},mode={METRICS_MODE:04o}"] if definition.metrics else []
    )
    where = ["--socket-path", str(places.socket(uuid))] if passed is None else ["--fd", str(passed)]
    return [
        "serve",
        *where,
        "--device",
        definition.device,
        "--transport",
        definition.transport,
        "--control",
        str(places.control(uuid)),
        *metrics,
    ]


def passed_listener(environ: MutableMapping[str, str], pid: int) -> int | None:
    """The fd that a service manager has passed to process ``pid`` (sd_listen_fds(3)). Raises InstanceError."""
    addressee, count = environ.pop("LISTEN_PID", None), environ.pop("LISTEN_FDS", None)
    environ.pop("LISTEN_FDNAMES", None)
    if addressee != str(pid):
        return None
    if count != "1":
        raise InstanceError(f"LISTEN_FDS is {count}; pass one socket, with one ListenStream=")
    return _FIRST_PASSED_FD
