"""What options of the command line may be."""

from __future__ import annotations

import argparse
import math


def session_number(text: str) -> int:
    """Sessions count from 1. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no session: they count from 1")
    return int(text)


def seconds(text: str) -> float:
    """How long to wait. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time to wait: write seconds, more than 0, for example 5"
        )
    return value
