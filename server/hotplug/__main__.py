"""``python -m server.hotplug NAME [--lifeline FD] ...``: ``vgpud serve ...`` with a device that can be unplugged.

NAME is for those who look for the process: :func:`server.hotplug.server_process.find_server`. FD is the lifeline of a
server that attach starts: :mod:`server.hotplug.lifeline`.
"""

from __future__ import annotations

import argparse
import sys

from server.cli import build_parser
from server.hotplug.lifeline import Lifeline
from server.qemu.unpluggable import without_msix
from server.serve import run_serve

if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--lifeline", type=int)
    given, others = own.parse_known_args(sys.argv[2:])
    arguments = build_parser().parse_args(["serve", *others])
    arguments.device = without_msix(arguments.device)
    lifeline = None if given.lifeline is None else Lifeline(given.lifeline, arguments.socket_path.parent)
    sys.exit(run_serve(arguments, lifeline))
