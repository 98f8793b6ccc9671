"""The device that a trace is of. Whoever made the trace may be a stranger, so what it may cost is bounded."""

from __future__ import annotations

from devices.contract import Device
from devices.models import MODELS
from devices.registry import OptionError, create_device, size
from protocol.trace import TraceError
from server.trace.replay.intervals import RecordedSession
from server.trace.text.names import printable

MAX_SIZE = 1 << 30
"""Bytes of memory that a trace may have a device take."""


def recorded_device(session: RecordedSession) -> Device:
    """Make the device that was recorded; it is the caller's. Raises TraceError."""
    path, text = session.reader.path, session.info.device
    if not text:
        raise TraceError(f"{path} does not say which device it is of")
    for setting in _sizes(text):
        if _size(setting) > MAX_SIZE:
            raise TraceError(
                f"{path} is of a device with {printable(setting)}, and no more than {MAX_SIZE >> 30}G is taken on a "
                "trace's word: replay it with --serve DEVICE"
            )
    try:
        return create_device(MODELS, text)
    except OptionError as error:
        raise TraceError(f"{path} is of a device that is not here: {printable(str(error))}") from error


def _sizes(text: str) -> list[str]:
    """The settings that say how much memory something may take."""
    name, *settings = text.split(",")
    options = [option for model in MODELS if model.name == name for option in model.options]
    sizes = {option.name for option in options if option.parse is size}
    return [setting for setting in settings if setting.partition("=")[0] in sizes]


def _size(setting: str) -> int:
    try:
        return size(setting.partition("=")[2])
    except ValueError:
        return 0  # for create_device to report
