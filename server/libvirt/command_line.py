"""``vgpud libvirt-xml``: the arguments; what the command needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TypeAlias

from server.exit_status import fail

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_libvirt_xml(commands: Subparsers) -> None:
    """Add ``libvirt-xml`` to the command line."""
    parser = commands.add_parser(
        "libvirt-xml",
        help="print what a libvirt domain needs to have a device",
        description="Print the elements to add to a libvirt domain (virsh edit). Options may be repeated: "
        "each gives the domain one device more, at a server of its own.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--socket-path", type=Path, action="append", metavar="PATH", help="socket that a server listens on"
    )
    where.add_argument(
        "--uuid", action="append", metavar="UUID", help="instance; 'vgpud list --defined' has them"
    )
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="FOLDER",
        help="folder of the instances' definitions (default: /etc/vgpud/instances.d for root, else "
        "$XDG_CONFIG_HOME/vgpud/instances.d)",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="FOLDER",
        help="folder of the instances' sockets (default: /run/vgpud for root, else $XDG_RUNTIME_DIR/vgpud)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="the device model at the sockets: firmware draws on a bochs-display with a ROM of QEMU's",
    )
    parser.set_defaults(handler=_libvirt_xml)


def _libvirt_xml(arguments: argparse.Namespace) -> int:
    from server.instances.errors import InstanceError  # noqa: PLC0415
    from server.libvirt.fragment import domain_fragment  # noqa: PLC0415

    try:
        _check_model(arguments)
        sockets = arguments.socket_path or _instance_sockets(arguments)
        text = domain_fragment(sockets, arguments.device)
    except (ValueError, InstanceError) as error:
        return fail(error)
    sys.stdout.write(text)
    return 0


def _check_model(arguments: argparse.Namespace) -> None:
    """Raises ValueError, one line for the user."""
    from devices.models import MODELS  # noqa: PLC0415

    if arguments.device is None:
        return
    if arguments.uuid:
        raise ValueError("--device goes with --socket-path: the device of an instance is known")
    names = [model.name for model in MODELS]
    if arguments.device not in names:
        raise ValueError(f"--device {arguments.device}: no device model; there are: {', '.join(names)}")


def _instance_sockets(arguments: argparse.Namespace) -> list[Path]:
    """Where the servers of instances listen once they are started. Raises InstanceError where one is not defined."""
    from server.instances.identity import parse_uuid  # noqa: PLC0415
    from server.instances.places import choose_places  # noqa: PLC0415
    from server.instances.store import Store  # noqa: PLC0415

    uuids = [parse_uuid(uuid) for uuid in arguments.uuid]
    places = choose_places(arguments.config_dir, arguments.runtime_dir, os.environ)
    store = Store(places.definitions)
    return [places.socket(store.read(uuid).uuid) for uuid in uuids]
