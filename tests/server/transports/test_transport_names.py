"""The names on the command line are those of the transports."""

from __future__ import annotations

import subprocess
import sys

from server.libvfio_user.transport import LibraryTransport
from server.native.transport import NATIVE
from server.transport_names import AUTO, CHOICES

ASK = """
import sys
from server.cli import build_parser
build_parser()
print(*sorted(name for name in sys.modules if name.startswith("server.native") or name == "trio"))
"""


def test_each_transport_can_be_chosen_by_its_name() -> None:
    assert (AUTO, NATIVE.name, LibraryTransport.name) == CHOICES


def test_the_command_line_is_known_before_any_transport_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
