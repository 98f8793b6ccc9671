"""How a command ends that cannot do what it was asked to."""

from __future__ import annotations

import sys

EXIT_FAILURE = 1


def fail(reason: object) -> int:
    """Say in one line what is wrong, and give the exit status for it."""
    sys.stderr.write(f"vgpud: {reason}\n")
    return EXIT_FAILURE
