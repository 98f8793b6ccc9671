"""The server's side of ``vgpud display``."""

from __future__ import annotations

from typing import Any

import structlog

from devices.display import Display
from server.control_protocol import ControlError
from server.display.protocol import DisplayChange, decode_change, encode_scanouts
from server.engine import Engine


def serve_display(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Change a screen if that is asked for, and tell of all of them. Raises ControlError with nothing changed."""
    change = decode_change(request)
    display = engine.display
    if change is not None:
        _apply(display, change)
    return encode_scanouts(display.scanouts)


def _apply(display: Display, change: DisplayChange) -> None:
    scanouts = display.scanouts
    if change.scanout >= len(scanouts):
        raise ControlError(f"there is no scanout {change.scanout}: this device has {len(scanouts)}")
    now = scanouts[change.scanout]
    width, height = change.size or (now.preferred_width, now.preferred_height)
    connected = now.connected if change.connected is None else change.connected
    try:
        display.set_mode(change.scanout, width, height, connected=connected)
    except (ValueError, IndexError) as error:
        raise ControlError(f"scanout {change.scanout}: {error}") from error
    structlog.get_logger().info(
        "display_changed", scanout=change.scanout, width=width, height=height, connected=connected
    )
