"""The commands about types and instances: the arguments; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from server.exit_status import fail
from server.instances.errors import InstanceError
from server.transport_names import AUTO, CHOICES

Run = Callable[[argparse.Namespace], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_instances(commands: Subparsers) -> None:
    """Add ``types``, ``define``, ``undefine``, ``start``, ``stop`` and ``list`` to the command line."""
    _add_types(commands)
    _add_define(commands)
    _add_undefine(commands)
    _add_start(commands)
    _add_stop(commands)
    _add_list(commands)
    _add_serve_instance(commands)


def _add_types(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "types", help="list the types of virtual GPU, and how many of each fit this host"
    )
    parser.add_argument("--json", action="store_true")
    _add_config_dir(parser)
    parser.set_defaults(handler=_types)


def _add_define(commands: Subparsers) -> None:
    parser = commands.add_parser("define", help="define an instance of a type, and print its UUID")
    parser.add_argument("--uuid", metavar="UUID", help="default: a random one")
    parser.add_argument("--type", required=True, metavar="NAME", help="'vgpud types' lists them")
    parser.add_argument("--auto", action="store_true", help="start it at boot, or with 'vgpud start --auto'")
    parser.add_argument(
        "--device",
        metavar="NAME[,OPTION=VALUE...]",
        help="the type's device, with options that are to differ from the type's",
    )
    parser.add_argument(
        "--transport",
        choices=CHOICES,
        default=AUTO,
        help="as for serve (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics", action="store_true", help="have its server offer metrics to Prometheus, at a UNIX socket"
    )
    _add_places(parser)
    _add_manager(parser)
    parser.set_defaults(handler=_define)


def _add_undefine(commands: Subparsers) -> None:
    parser = commands.add_parser("undefine", help="forget an instance that does not run")
    parser.add_argument("uuid", metavar="UUID")
    _add_places(parser)
    _add_manager(parser)
    parser.set_defaults(handler=_undefine)


def _add_start(commands: Subparsers) -> None:
    parser = commands.add_parser("start", help="start an instance; prints its socket")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("uuid", nargs="?", metavar="UUID")
    which.add_argument("--auto", action="store_true", help="all that were defined with --auto")
    _add_places(parser)
    _add_manager(parser)
    parser.set_defaults(handler=_start)


def _add_stop(commands: Subparsers) -> None:
    parser = commands.add_parser("stop", help="stop an instance that no client is attached to")
    parser.add_argument("uuid", metavar="UUID")
    parser.add_argument(
        "--force", action="store_true", help="even if a client is attached: QEMU aborts when its server ends"
    )
    _add_places(parser)
    _add_manager(parser)
    parser.set_defaults(handler=_stop)


def _add_list(commands: Subparsers) -> None:
    parser = commands.add_parser("list", help="list the instances that are started, and what they do")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--defined", action="store_true", help="those that are defined, started or not")
    _add_places(parser)
    parser.set_defaults(handler=_list)


def _add_serve_instance(commands: Subparsers) -> None:
    """Without ``help``, so that it is not listed: it is for systemd's units and for ``start``."""
    parser = commands.add_parser("serve-instance", description="serve an instance in the foreground")
    parser.add_argument("uuid", metavar="UUID")
    _add_places(parser)
    parser.set_defaults(handler=_serve_instance)


def _add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="FOLDER",
        help="folder of definitions (default: /etc/vgpud/instances.d for root, else "
        "$XDG_CONFIG_HOME/vgpud/instances.d)",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    _add_config_dir(parser)
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="FOLDER",
        help="folder of sockets (default: /run/vgpud for root, else $XDG_RUNTIME_DIR/vgpud)",
    )


def _add_manager(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--manager",
        choices=("auto", "systemd", "direct"),
        default="auto",
        help="what starts and stops servers; auto is systemd for root where systemd runs (default: %(default)s)",
    )


def _guarded(run: Run, arguments: argparse.Namespace) -> int:
    try:
        return run(arguments)
    except InstanceError as error:
        return fail(error)


def _types(arguments: argparse.Namespace) -> int:
    from server.instances.listing import run_types  # noqa: PLC0415

    return _guarded(run_types, arguments)


def _define(arguments: argparse.Namespace) -> int:
    from server.instances.commands import run_define  # noqa: PLC0415

    return _guarded(run_define, arguments)


def _undefine(arguments: argparse.Namespace) -> int:
    from server.instances.commands import run_undefine  # noqa: PLC0415

    return _guarded(run_undefine, arguments)


def _start(arguments: argparse.Namespace) -> int:
    from server.instances.commands import run_start  # noqa: PLC0415

    return _guarded(run_start, arguments)


def _stop(arguments: argparse.Namespace) -> int:
    from server.instances.commands import run_stop  # noqa: PLC0415

    return _guarded(run_stop, arguments)


def _list(arguments: argparse.Namespace) -> int:
    from server.instances.listing import run_list  # noqa: PLC0415

    return _guarded(run_list, arguments)


def _serve_instance(arguments: argparse.Namespace) -> int:
    from server.instances.serve_instance import run_serve_instance  # noqa: PLC0415

    return _guarded(run_serve_instance, arguments)
