"""What a device says of itself, what becomes of its interrupts, and its features, in words."""

from __future__ import annotations

from collections.abc import Iterator

from protocol import (
    DeviceFeature,
    DmaLoggingControl,
    DmaLoggingReport,
    Feature,
    FeatureFlags,
    IoFdType,
    IrqData,
    MigrationState,
    MigrationSupport,
    MsixMappable,
    OtherCapability,
    ProtocolError,
    RegionCapability,
    RegionInfo,
    RegionIoFds,
    RegionType,
    SetIrqs,
    SparseMmap,
    SubRegion,
)
from server.trace.fd_facts import FdFacts
from server.trace.text.names import Names
from server.trace.text.value_text import data_text, fds_text, flags_text, size_text, some, span

MAX_LISTED = 8
"""Areas, sub-regions, ranges and vectors that are listed."""

Fds = tuple[FdFacts, ...]


def region_info(value: RegionInfo, names: Names, _fds: Fds) -> str:
    """``BAR4 16 KiB READ|WRITE``, and how it can be mapped."""
    texts = [f"{names.region(value.index)} {size_text(value.size)} {flags_text(value.flags)}"]
    if value.offset:
        texts.append(f"at +{value.offset:#x} of its fd")
    texts.extend(map(_capability, value.capabilities))
    if value.needed is not None:
        texts.append(_cut(value.needed))
    return ", ".join(texts)


def _capability(capability: RegionCapability) -> str:
    match capability:
        case SparseMmap(areas):
            listed = some((span(*area) for area in areas), len(areas), MAX_LISTED, " ")
            return f"mappable areas: {listed or 'none'}"
        case RegionType(kind, subtype):
            return f"type {kind:#x} subtype {subtype:#x}"
        case MsixMappable():
            return "MSI-X table mappable"
        case OtherCapability(number, version, data):
            return f"capability {number} version {version} {data_text(data)}"


def io_fds(value: RegionIoFds, names: Names, _fds: Fds) -> str:
    """The sub-regions of a region, and through which fd each notifies."""
    texts = [names.region(value.index)]
    if value.needed is not None:
        texts.append(_cut(value.needed))
    else:
        subs = value.sub_regions
        texts.append(some(map(_sub_region, subs), len(subs), MAX_LISTED, ", ") or "no fds")
    return ", ".join(texts)


def _sub_region(sub: SubRegion) -> str:
    kinds = {kind.value: kind.name.lower() for kind in IoFdType}
    kind = kinds.get(sub.type) or f"type {sub.type}"
    flags = f" flags {sub.flags:#x}" if sub.flags else ""
    data = f" data {sub.data:#x}" if sub.data else ""
    return f"{span(sub.offset, sub.size)} {kind} fd {sub.fd_index}{flags}{data}"


def _cut(needed: int) -> str:
    return f"cut: the whole reply takes {size_text(needed)}"


def set_irqs(value: SetIrqs, names: Names, fds: Fds) -> str:
    """``MSIX 0-2: trigger through 3 eventfds``."""
    irq = names.irq(value.index)
    action = value.action.name.lower()
    if value.disables:
        return f"{irq}: off" + (f" (with {fds_text(fds)})" if fds else "")
    irq += f" {value.start}" if value.count == 1 else f" {value.start}-{value.start + value.count - 1}"
    if value.data is IrqData.EVENTFD:
        return f"{irq}: {action} through {fds_text(fds)}" if fds else f"{irq}: {action} through nothing"
    if value.data is IrqData.BOOL:
        chosen = value.vectors
        return f"{irq}: {action} {some(map(str, chosen), len(chosen), MAX_LISTED, ' ') or 'none'}"
    return f"{irq}: {action}"


def feature(value: DeviceFeature, _names: Names, _fds: Fds) -> str:
    """``MIG_DEVICE_STATE SET RUNNING``."""
    known = {one.value: one.name for one in Feature}
    name = known.get(value.feature) or f"feature {value.feature}"
    return " ".join((name, flags_text(value.flags), *_feature_data(value)))


def _feature_data(value: DeviceFeature) -> Iterator[str]:
    if not value.data:
        return
    try:
        text = _known_feature_data(value)
    except ProtocolError:
        text = ""
    yield text or data_text(value.data)


def _known_feature_data(value: DeviceFeature) -> str:
    """Raises ProtocolError; empty for what is not known."""
    match value.feature:
        case Feature.MIGRATION:
            return flags_text(MigrationSupport.unpack(value.data).flags)
        case Feature.MIG_DEVICE_STATE:
            return MigrationState.unpack(value.data).device_state.name
        case Feature.DMA_LOGGING_START if FeatureFlags.SET in value.flags:
            return _logging(DmaLoggingControl.unpack(value.data))
        case Feature.DMA_LOGGING_REPORT:
            report = DmaLoggingReport.unpack(value.data)
            dirty = f": {data_text(report.bitmap)}" if report.bitmap else ""
            return f"{span(report.iova, report.length)} pages of {size_text(report.page_size)}{dirty}"
    return ""


def _logging(control: DmaLoggingControl) -> str:
    ranges = control.ranges
    listed = some((span(*one) for one in ranges), len(ranges), MAX_LISTED, " ") or "everything"
    return f"{listed} pages of {size_text(control.page_size)}"
