"""The ``display`` command of the control protocol: a change of one screen, and the screens that there are.

A request has ``scanout`` and at least one change: ``width`` with ``height``, ``connected``; or none of these, which
changes nothing. The answer has ``scanouts``, one object each, in order of their index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from devices.display import ScanoutInfo
from server.control_protocol import ControlError

MAX_SIDE = 1 << 16
"""Pixels; no screen of any device is wider or higher. The device has limits of its own."""
FIELDS = ("index", "connected", "preferred_width", "preferred_height", "width", "height", "x", "y")
"""What the answer says of each screen."""

_CHANGES = ("width", "height", "connected")


@dataclass(frozen=True, slots=True)
class DisplayChange:
    """What to change about a screen; what is None stays."""

    scanout: int
    size: tuple[int, int] | None = None
    """Width and height that the screen prefers, in pixels."""
    connected: bool | None = None

    def encode(self) -> dict[str, Any]:
        """The fields of a request."""
        fields: dict[str, Any] = {"scanout": self.scanout}
        if self.size is not None:
            fields["width"], fields["height"] = self.size
        if self.connected is not None:
            fields["connected"] = self.connected
        return fields


def decode_change(request: dict[str, Any]) -> DisplayChange | None:
    """The inverse of :meth:`DisplayChange.encode`; None where nothing is to change. Raises ControlError."""
    wanted = [name for name in _CHANGES if name in request]
    if "scanout" not in request:
        if wanted:
            raise ControlError(f"{wanted[0]} needs a scanout, the number of the screen that it is for")
        return None
    scanout = _number(request, "scanout", 0, MAX_SIDE)
    if not wanted:
        raise ControlError(f"nothing is to change about scanout {scanout}: give a size, or connected")
    connected = request.get("connected")
    if "connected" in request and not isinstance(connected, bool):
        raise ControlError("connected takes true or false")
    size = None
    if "width" in request or "height" in request:
        size = _number(request, "width", 1, MAX_SIDE), _number(request, "height", 1, MAX_SIDE)
    return DisplayChange(scanout, size, connected)


def encode_scanouts(scanouts: Iterable[ScanoutInfo]) -> dict[str, Any]:
    """The fields of an answer."""
    return {"scanouts": [describe(scanout) for scanout in scanouts]}


def describe(scanout: ScanoutInfo) -> dict[str, Any]:
    """One screen as JSON has it."""
    values = asdict(scanout)
    return {name: values[name] for name in FIELDS}


def decode_scanouts(answer: dict[str, Any]) -> list[ScanoutInfo]:
    """The inverse of :func:`encode_scanouts`. Raises ControlError."""
    scanouts = answer.get("scanouts")
    if not isinstance(scanouts, list) or not all(isinstance(scanout, dict) for scanout in scanouts):
        raise ControlError("the answer does not say which scanouts there are")
    return [_decode(scanout) for scanout in scanouts]


def _decode(fields: dict[str, Any]) -> ScanoutInfo:
    if not isinstance(connected := fields.get("connected"), bool):
        raise ControlError("the answer does not say whether a scanout is connected")
    numbers = {name: _number(fields, name, 0, 1 << 32) for name in FIELDS if name != "connected"}
    return ScanoutInfo(connected=connected, **numbers)


def _number(fields: dict[str, Any], name: str, least: int, most: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ControlError(f"{name} takes a number from {least} to {most}")
    return value
