"""``python -m server.hotplug NAME ...``: what attach starts, ``vgpud serve ...`` with a device that can be unplugged.

NAME is for those who look for the process: :func:`server.hotplug.server_process.process_name`.
"""

from __future__ import annotations

import sys

from server.cli import build_parser
from server.hotplug.unpluggable import hide_msix
from server.serve import run_serve

if __name__ == "__main__":
    sys.exit(run_serve(build_parser().parse_args(["serve", *sys.argv[2:]]), hide_msix))
