"""DMA logging, the feature by which a client learns what the device wrote to its memory.

VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _STOP and _REPORT of linux/vfio.h, in a DEVICE_FEATURE message. A report is of
4 KiB pages whatever the unit of the request (:mod:`server.dma.dirty`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from protocol import (
    DeviceFeature,
    DmaLoggingControl,
    DmaLoggingReport,
    Feature,
    FeatureFlags,
    ProtocolError,
)
from server.dma.memory import GuestMemoryMap

MAX_RANGES: Final = 4096
"""Ranges that one client may have logged; the kernel's drivers take fewer."""

_OPERATIONS: Final = {
    Feature.DMA_LOGGING_START: FeatureFlags.SET,
    Feature.DMA_LOGGING_STOP: FeatureFlags.SET,
    Feature.DMA_LOGGING_REPORT: FeatureFlags.GET,
}


def serve_feature(memory: GuestMemoryMap, request: DeviceFeature, max_data: int) -> DeviceFeature:
    """The reply to a request about a feature; ``max_data`` bytes are the most that the client takes.

    Raises ProtocolError and DmaError. ENOTTY: no such feature, or not for this operation. EINVAL: data of another
    shape, logging that is on already or is not on, or a bitmap of more than ``max_data`` bytes.
    """
    allowed = _OPERATIONS.get(_feature(request))
    asked = request.flags & ~FeatureFlags.PROBE
    if allowed is None or asked & ~allowed or not (asked or request.probe):
        raise ProtocolError(
            errno.ENOTTY, f"the device does not support {request.flags!r} of feature {request.feature}"
        )
    if request.probe:
        return request.reply()
    return _SERVE[_feature(request)](memory, request, max_data)


def _feature(request: DeviceFeature) -> Feature:
    try:
        return Feature(request.feature)
    except ValueError:
        raise ProtocolError(errno.ENOTTY, f"the device does not support feature {request.feature}") from None


def _start(memory: GuestMemoryMap, request: DeviceFeature, _max_data: int) -> DeviceFeature:
    control = DmaLoggingControl.unpack(request.data)
    if len(control.ranges) > MAX_RANGES:
        raise ProtocolError(errno.EINVAL, f"DMA logging of more than {MAX_RANGES} ranges")
    memory.dirty.start(control.ranges)
    return request.reply()


def _stop(memory: GuestMemoryMap, request: DeviceFeature, _max_data: int) -> DeviceFeature:
    memory.dirty.stop()
    return request.reply()


def _report(memory: GuestMemoryMap, request: DeviceFeature, max_data: int) -> DeviceFeature:
    report = DmaLoggingReport.unpack(request.data)
    size = report.bitmap_size
    if size > max_data:
        raise ProtocolError(errno.EINVAL, f"a dirty bitmap of {size} bytes, over max_data_xfer_size")
    if len(request.pack()) + size > request.argsz:
        # The argsz of the reply says how much it takes; what the client did not get stays in the log.
        return request.reply(replace(report, bitmap=bytes(size)).pack())
    bitmap = memory.dirty_bitmap(report.iova, report.length, report.page_size)
    return request.reply(replace(report, bitmap=bitmap).pack())


_SERVE: Final[dict[Feature, Callable[[GuestMemoryMap, DeviceFeature, int], DeviceFeature]]] = {
    Feature.DMA_LOGGING_START: _start,
    Feature.DMA_LOGGING_STOP: _stop,
    Feature.DMA_LOGGING_REPORT: _report,
}
