"""What QEMU answered, looked at only after it was found to be what the protocol promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.hotplug.errors import HotplugError


class UnexpectedAnswer(HotplugError):  # noqa: N818 - what the user reads
    """QEMU's answer is not of the form that QMP's reference gives."""

    def __init__(self, what: str) -> None:
        super().__init__(f"QEMU's answer makes no sense: {what}; is it really QEMU at that socket?")


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """``value`` as a JSON object. Raises UnexpectedAnswer."""
    if not isinstance(value, dict):
        raise UnexpectedAnswer(f"{what} is no object")
    return value


def as_objects(value: Any, what: str) -> Sequence[Mapping[str, Any]]:
    """``value`` as an array of JSON objects. Raises UnexpectedAnswer."""
    if not isinstance(value, list):
        raise UnexpectedAnswer(f"{what} is no array")
    return [as_object(item, f"an item of {what}") for item in value]


def text_of(value: Mapping[str, Any], key: str) -> str:
    """The string ``key``. Raises UnexpectedAnswer."""
    found = value.get(key)
    if not isinstance(found, str):
        raise UnexpectedAnswer(f"{key} is no string")
    return found


def number_of(value: Mapping[str, Any], key: str, below: int) -> int:
    """The number ``key``, from 0 to ``below`` - 1. Raises UnexpectedAnswer."""
    found = value.get(key)
    if type(found) is not int or not 0 <= found < below:
        raise UnexpectedAnswer(f"{key} is no number below {below}")
    return found


def truth_of(value: Mapping[str, Any], key: str) -> bool:
    """The boolean ``key``. Raises UnexpectedAnswer."""
    found = value.get(key)
    if not isinstance(found, bool):
        raise UnexpectedAnswer(f"{key} is neither true nor false")
    return found
