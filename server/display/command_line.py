"""``vgpud display``: the arguments; what the command needs is imported when it runs."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TypeAlias

from server.exit_status import fail
from server.instances.control_option import add_control, control_socket
from server.instances.errors import InstanceError

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


def add_display(commands: Subparsers) -> None:
    """Add ``display`` to the command line."""
    parser = commands.add_parser("display", help="list the screens of a running server, or change one")
    add_control(parser)
    parser.add_argument("--scanout", type=int, metavar="N", help="the screen to change, or to list alone")
    parser.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="the mode that the screen prefers from now on, in pixels"
    )
    plug = parser.add_mutually_exclusive_group()
    plug.add_argument("--connect", dest="connected", action="store_const", const=True, help="plug it in")
    plug.add_argument("--disconnect", dest="connected", action="store_const", const=False, help="unplug it")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(handler=_display)


def _display(arguments: argparse.Namespace) -> int:
    from server.control_protocol import ControlError  # noqa: PLC0415
    from server.display.command import run_display  # noqa: PLC0415

    try:
        lines = run_display(
            control_socket(arguments),
            arguments.scanout,
            parse_size(arguments.size),
            arguments.connected,
            as_json=arguments.json,
        )
    except (ControlError, InstanceError, ValueError) as error:
        return fail(error)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def parse_size(text: str | None) -> tuple[int, int] | None:
    """What ``--size`` says. Raises ValueError with one line that names the fix."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"--size {text}: write width and height in pixels, for example 1920x1080")
    return int(match[1]), int(match[2])
