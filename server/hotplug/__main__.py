"""``python -m server.hotplug NAME ...``: what attach starts, ``vgpud serve ...`` with a device that can be unplugged.

NAME is for those who look for the process: :func:`server.hotplug.server_process.find_server`.
"""

from __future__ import annotations

import sys

from server.cli import build_parser
from server.hotplug.unpluggable import without_msix
from server.serve import run_serve

if __name__ == "__main__":
    arguments = build_parser().parse_args(["serve", *sys.argv[2:]])
    arguments.device = without_msix(arguments.device)
    sys.exit(run_serve(arguments))
