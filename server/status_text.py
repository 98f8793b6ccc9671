"""``vgpud status`` for people: the status tree as indented lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def status_lines(status: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """One line per value; nested mappings are indented below their name."""
    for key, value in status.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from status_lines(value, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                yield f"{indent}{name} {number}:"
                yield from status_lines(item, indent + "  ")
        else:
            yield f"{indent}{name}: {'none' if value is None else value}"
