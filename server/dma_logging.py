"""DMA logging, the feature by which a client learns what the device wrote to its memory.

VFIO_DEVICE_FEATURE_DMA_LOGGING_START, _STOP and _REPORT of linux/vfio.h, in a DEVICE_FEATURE message; the errors are
those of the kernel (vfio_check_feature in its include/linux/vfio.h, and who calls it in drivers/vfio/vfio_main.c).
The log is of 4 KiB pages whatever the unit of a request (:mod:`server.dma.dirty`), and the reply to a start says so.
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
from server.dma.address_space import PAGE_SIZE
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

    Raises ProtocolError and DmaError. ENOTTY: no such feature. EINVAL: not for this operation, data of another
    shape, an argsz that is too small for what is set, logging that is on already or is not on, or a bitmap of more
    than ``max_data`` bytes. E2BIG: too many ranges. EOVERFLOW: a range wraps.
    """
    feature = _feature(request)
    asked = request.flags & ~FeatureFlags.PROBE
    if asked & ~_OPERATIONS[feature]:
        raise ProtocolError(errno.EINVAL, f"{feature.name} is not for {asked!r}")
    if request.probe:
        return request.reply()
    if FeatureFlags.SET in asked and request.argsz < len(request.pack()):
        # The reply is as long as the request: better refused than set and not answered.
        raise ProtocolError(
            errno.EINVAL, f"an argsz of {request.argsz} with {len(request.data)} bytes of data"
        )
    return _SERVE[feature](memory, request, max_data)


def _feature(request: DeviceFeature) -> Feature:
    """The feature that a request is about. Raises ProtocolError (ENOTTY) where the device has no such thing."""
    for feature in _OPERATIONS:
        if feature == request.feature:
            return feature
    raise ProtocolError(errno.ENOTTY, f"the device does not support feature {request.feature}")


def _start(memory: GuestMemoryMap, request: DeviceFeature, _max_data: int) -> DeviceFeature:
    control = DmaLoggingControl.unpack(request.data)
    if len(control.ranges) > MAX_RANGES:
        raise ProtocolError(errno.E2BIG, f"DMA logging of more than {MAX_RANGES} ranges")
    memory.dirty.start(control.ranges)
    return replace(request, data=replace(control, page_size=PAGE_SIZE).pack())


def _stop(memory: GuestMemoryMap, request: DeviceFeature, _max_data: int) -> DeviceFeature:
    memory.dirty.stop()
    return request.reply()


def _report(memory: GuestMemoryMap, request: DeviceFeature, max_data: int) -> DeviceFeature:
    report = replace(DmaLoggingReport.unpack(request.data), bitmap=b"")
    memory.dirty.check_report(report.iova, report.length, report.page_size)
    size = report.bitmap_size
    if size > max_data:
        raise ProtocolError(errno.EINVAL, f"a dirty bitmap of {size} bytes, over max_data_xfer_size")
    clean = request.reply(replace(report, bitmap=bytes(size)).pack())
    if not clean.data:
        # The argsz of the reply says how much it takes; what the client did not get stays in the log.
        return clean
    bitmap = memory.dirty_bitmap(report.iova, report.length, report.page_size)
    return request.reply(replace(report, bitmap=bitmap).pack())


_SERVE: Final[dict[Feature, Callable[[GuestMemoryMap, DeviceFeature, int], DeviceFeature]]] = {
    Feature.DMA_LOGGING_START: _start,
    Feature.DMA_LOGGING_STOP: _stop,
    Feature.DMA_LOGGING_REPORT: _report,
}
