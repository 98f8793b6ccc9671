"""What goes wrong when a device is plugged in or unplugged."""

from __future__ import annotations

LONGEST_REASON = 500
"""Characters of somebody else's words that an error quotes."""


class HotplugError(Exception):
    """It cannot be done; the text is one line that says why and, where there is one, the fix."""


def one_line(text: str) -> str:
    """``text`` as it may be shown to a user: one line, nothing that a terminal would act on, not too long."""
    words = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}..."
