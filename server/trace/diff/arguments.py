"""What options of ``vgpud trace diff`` may be."""

from __future__ import annotations

import argparse
from typing import Final

MAX_CONTEXT: Final = 10_000
"""Messages that are held to be shown before a difference."""


def context_size(text: str) -> int:
    """How many messages are shown around a difference. Raises ArgumentTypeError."""
    if (
        not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_CONTEXT)))
        or int(text) > MAX_CONTEXT
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of messages from 0 to {MAX_CONTEXT}")
    return int(text)
