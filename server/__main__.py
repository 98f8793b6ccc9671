"""``python -m server`` is ``vgpud``, and the program ``vgpud`` begins here.

Python is some tenths of a second at importing what a command needs. Ctrl-C ends it at once until then, as it ends any
program that has nothing to clean up, and not with a traceback of what was being imported.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """The console script ``vgpud``."""
    with_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if with_interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from server.cli import main  # noqa: PLC0415 - this is what takes the time

    if with_interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(main())
