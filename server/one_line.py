"""Somebody else's words, as an error may quote them."""

from __future__ import annotations

LONGEST_REASON = 500
"""Characters of them that an error quotes."""


def one_line(text: str) -> str:
    """``text`` as it may be shown to a user: one line, nothing that a terminal would act on, not too long."""
    words = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}..."
