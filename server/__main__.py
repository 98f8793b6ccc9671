"""``python -m server`` is ``vgpud``."""

import sys

from server.cli import main

sys.exit(main())
