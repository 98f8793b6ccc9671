"""``vgpud attach`` and ``vgpud detach``: the arguments; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from server.transport_names import CHOICES

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_attach(commands: Subparsers) -> None:
    """Add ``attach`` to the command line."""
    parser = commands.add_parser("attach", help="plug a device into a running guest")
    _add_qmp(parser)
    parser.add_argument(
        "--id", metavar="ID", help="what QEMU is to call the device (default: vgpud0, vgpud1, ...)"
    )
    parser.add_argument("--bus", metavar="ID", help="the port to plug it in (default: the first free one)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument(
        "--socket-path",
        type=Path,
        metavar="PATH",
        help="use the server that listens there; else one is started, which ends when the guest has let it go",
    )
    server = parser.add_argument_group("the server to be started")
    server.add_argument(
        "--device", metavar="NAME[,OPTION=VALUE...]", help="device model, as serve's (default: virtio-gpu)"
    )
    server.add_argument("--transport", choices=CHOICES, help="as serve's (default: auto)")
    server.add_argument("--control", type=Path, metavar="PATH", help="socket for status and screenshots")
    server.add_argument("--trace", type=Path, metavar="FILE", help="record the session; see 'vgpud trace'")
    server.add_argument(
        "--log", type=Path, metavar="FILE", help="append its log to FILE; else nobody sees it"
    )
    server.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="serve Prometheus' metrics at [HOST:]PORT or unix:PATH, as serve does",
    )
    parser.set_defaults(handler=_attach)


def add_detach(commands: Subparsers) -> None:
    """Add ``detach`` to the command line."""
    parser = commands.add_parser("detach", help="unplug a device from a running guest")
    _add_qmp(parser)
    parser.add_argument("--id", metavar="ID", help="the device; may be left out where there is only one")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="wait so long for the guest (default: %(default)g)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="unplug also a device with MSI-X: QEMU up to 11.1 aborts then, and the guest is lost",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(handler=_detach)


def _add_qmp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qmp",
        type=Path,
        required=True,
        metavar="PATH",
        help="the socket of QEMU's -qmp unix:PATH,server=on,wait=off",
    )


def seconds(text: str) -> float:
    """A time-out; argparse names this function where the text is none."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _attach(arguments: argparse.Namespace) -> int:
    from server.hotplug.command import run_attach  # noqa: PLC0415

    return run_attach(arguments)


def _detach(arguments: argparse.Namespace) -> int:
    from server.hotplug.command import run_detach  # noqa: PLC0415

    return run_detach(arguments)
