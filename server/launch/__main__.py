"""``python -m server.launch NAME [--unpluggable] ...``: what run starts, ``vgpud serve ...`` for one client.

Its exit status says whether that has left. NAME is the GPU's, for whoever looks at processes.
"""

from __future__ import annotations

import sys

from devices.models import MODELS
from devices.registry import OptionError, create_device
from server.cli import build_parser
from server.exit_status import fail
from server.launch.client_left import ClientLeft
from server.launch.server_process import UNPLUGGABLE
from server.qemu.unpluggable import without_msix
from server.serve import run_serve


def main(words: list[str]) -> int:
    """Serve until the client has left; ``words`` are the options."""
    arguments = build_parser().parse_args(
        ["serve", "--once", *(word for word in words if word != UNPLUGGABLE)]
    )
    try:
        create_device(MODELS, arguments.device).close()
    except OptionError as error:
        return fail(f"--gpu {arguments.device}: {error}")
    if UNPLUGGABLE in words:
        arguments.device = without_msix(arguments.device)
    client = ClientLeft()
    return run_serve(arguments, client) or client.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
