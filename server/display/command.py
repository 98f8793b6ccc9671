"""``vgpud display``: ask the server, and say what it answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from devices.display import ScanoutInfo
from server.control_client import display
from server.control_protocol import ControlError
from server.display.protocol import DisplayChange, describe
from server.run_async import run_async


def run_display(
    control: Path,
    scanout: int | None,
    size: tuple[int, int] | None,
    connected: bool | None,
    *,
    as_json: bool,
) -> list[str]:
    """Change screen ``scanout`` if ``size`` or ``connected`` say so; returns what to print.

    Raises ControlError, one line that says what to do.
    """
    changes = size is not None or connected is not None
    if changes and scanout is None:
        raise ControlError(
            f"say which screen with --scanout N; 'vgpud display --control {control}' lists them"
        )
    change = DisplayChange(scanout, size, connected) if changes and scanout is not None else None
    scanouts = run_async(display, control, change)
    if scanout is not None:
        scanouts = [_find(scanouts, scanout)]
    if as_json:
        return json.dumps([describe(screen) for screen in scanouts], indent=2).splitlines()
    return [text_of(screen) for screen in scanouts]


def _find(scanouts: Sequence[ScanoutInfo], index: int) -> ScanoutInfo:
    for screen in scanouts:
        if screen.index == index:
            return screen
    raise ControlError(f"there is no scanout {index}: this device has {len(scanouts)}")


def text_of(screen: ScanoutInfo) -> str:
    """A screen as one line for people."""
    plugged = "connected" if screen.connected else "disconnected"
    shown = f"{screen.width}x{screen.height}" if screen.width else "nothing"
    if screen.x or screen.y:
        shown += f" from {screen.x},{screen.y} of a larger picture"
    preferred = f"{screen.preferred_width}x{screen.preferred_height}"
    return f"scanout {screen.index}: {plugged}, prefers {preferred}, shows {shown}"
