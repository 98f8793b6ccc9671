"""Which server a command asks: the one of a control socket, or the one of an instance."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.instances.errors import InstanceError


def add_control(parser: argparse.ArgumentParser) -> None:
    """Add ``--control``, ``--uuid`` and ``--runtime-dir`` to a command."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--control", type=Path, metavar="PATH", help="ask the server with this control socket")
    which.add_argument(
        "--uuid", metavar="UUID", help="ask the server of this instance; 'vgpud list' has them"
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="FOLDER",
        help="--uuid: folder of sockets (default: /run/vgpud for root, else $XDG_RUNTIME_DIR/vgpud)",
    )


def control_socket(arguments: argparse.Namespace) -> Path:
    """The control socket that the arguments name. Raises InstanceError where no server of the instance runs."""
    from server.instances.identity import parse_uuid  # noqa: PLC0415 - not for who names a socket
    from server.instances.pid_file import holder  # noqa: PLC0415
    from server.instances.places import choose_places  # noqa: PLC0415

    if arguments.uuid is None:
        control: Path = arguments.control
        return control
    uuid = parse_uuid(arguments.uuid)
    places = choose_places(None, arguments.runtime_dir, os.environ)
    if holder(places.pid_file(uuid)) is None:
        raise InstanceError(f"{uuid} is not running; 'vgpud start {uuid}'")
    return places.control(uuid)
