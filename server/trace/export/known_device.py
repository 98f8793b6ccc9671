"""Which device a trace is of that does not say so: what the client read of it tells, for those with mapped pictures."""

from __future__ import annotations

from dataclasses import replace

from devices.bochs_display.constants import FRAMEBUFFER_BAR, IDENTITY
from protocol import PciRegion, RegionInfo, RegionReadReply
from protocol.trace import SessionInfo
from server.trace.pairing import DecodedMessage, walk
from server.trace.reader import TracedSession, TraceReader

_IDS = IDENTITY.vendor.to_bytes(2, "little") + IDENTITY.device.to_bytes(2, "little")


def known_device(reader: TraceReader, number: int) -> SessionInfo | None:
    """What session ``number`` is of, if its PCI ids are those of a Bochs display, else None. Raises TraceError."""
    session, info = 0, SessionInfo("")
    ids, size = bytearray(len(_IDS)), 0
    for item in walk(reader):
        if isinstance(item, TracedSession):
            session, info = session + 1, item.info if session + 1 == number else info
        elif session == number and isinstance(item, DecodedMessage):
            value = item.value
            if isinstance(value, RegionReadReply) and value.region == PciRegion.CONFIG:
                if value.offset < len(ids):
                    part = value.data[: len(ids) - value.offset]
                    ids[value.offset : value.offset + len(part)] = part
            elif isinstance(value, RegionInfo) and item.is_reply and value.index == FRAMEBUFFER_BAR:
                size = value.size
        if session > number or (size and ids == _IDS):
            break
    if not size or ids != _IDS:
        return None
    # With memory, everything was a message, and the proxy has not looked at anything.
    return replace(info, device=f"bochs-display,vgamem={size}", areas=not info.memory)
