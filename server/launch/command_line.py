"""``vgpud run``: the arguments; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from server.transport_names import AUTO, CHOICES

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_DESCRIPTION = """\
Start QEMU together with the server of its virtual GPU. The command line is one that works by itself: what the GPU needs
is added to it, memory that is shared among it. Both end together, with QEMU's exit status. The guest cannot be migrated
or saved in a snapshot, and QEMU is made to refuse it.
"""


def add_run(commands: Subparsers) -> None:
    """Add ``run`` to the command line."""
    parser = commands.add_parser(
        "run",
        help="start QEMU with a virtual GPU, and end both together",
        description=_DESCRIPTION,
        usage="vgpud run [options] -- qemu-system-x86_64 ...",
    )
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="NAME[,OPTION=VALUE...]",
        help="the GPU, as serve's --device; several times for several (default: virtio-gpu)",
    )
    parser.add_argument(
        "--transport",
        choices=CHOICES,
        default=AUTO,
        help="what speaks vfio-user, as for serve (default: %(default)s)",
    )
    parser.add_argument("--control", type=Path, metavar="PATH", help="socket for status and screenshots")
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="serve /metrics to Prometheus, as serve does; of several GPUs each has the next port, or a socket with "
        "its number",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="record the session; see 'vgpud trace'")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="the server's log (default: its warnings, on stderr)"
    )
    parser.add_argument(
        "--root-port",
        action="store_true",
        help="put each GPU behind a port of its own, out of which it can be unplugged, and without MSI-X, as QEMU up "
        "to 11.1 aborts when a device with MSI-X is unplugged; for q35",
    )
    parser.add_argument("--dry-run", action="store_true", help="print QEMU's command, and exit")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="qemu-system-x86_64 ...")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    from server.launch.run import run_guest  # noqa: PLC0415

    return run_guest(arguments)
