"""Messages, events and sessions as JSON objects.

Every object has a ``type``: message, memory, interrupt, area, look, malformed or session; ``session`` counts from 1;
``time`` is in seconds since the first message, ``timestamp`` in ns since 1970. A message has the fields of its value
beside its own: numbers, data in hexadecimal, flags as a list of names. Of a message that does not decode there are
``reason`` and ``payload`` instead. ``area`` is what a look at areas that the client may map found, and ``look`` its
end; ``malformed`` is what was received of a message whose framing is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from enum import Enum, IntFlag
from typing import Any

from protocol import (
    DeviceFeature,
    ErrorReply,
    Feature,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqInfo,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteReply,
    Reply,
    Request,
    SetIrqs,
)
from protocol.trace import Access, AreaChange, Event, SessionInfo, TraceError
from server.trace.fd_facts import FdFacts
from server.trace.pairing import DecodedMessage
from server.trace.reader import TracedLook, TracedMalformed, TracedMessage, TraceReader
from server.trace.text.names import Names, command_name, errno_name, flag_names

Object = dict[str, Any]

_NS = 1_000_000_000
_NS_PER_US = 1000


def session_object(session: int, info: SessionInfo) -> Object:
    """What is known of a session."""
    return {"type": "session", "session": session, **asdict(info)}


def message_object(decoded: DecodedMessage, session: int, names: Names, first: int) -> Object:
    """A message; ``first`` is when the first was, in ns."""
    message = decoded.message
    header = message.header
    common: Object = {
        "type": "message",
        "session": session,
        "number": message.number,
        **_times(message.time, first),
        "direction": _direction(message.inbound),
        "kind": "reply" if decoded.is_reply else "request" if header.is_command else "unknown",
        "command": command_name(header.command),
        "message_id": header.message_id,
    }
    if decoded.is_posted:
        common["posted"] = True
    if message.facts.twin:
        common["twin"] = True
    if message.facts.fds:
        common["fds"] = [_fd(facts) for facts in message.facts.fds]
    return {**common, **_answer(decoded), **_said(decoded, names)}


def raw_object(message: TracedMessage) -> Object:
    """The bytes of a message: the fields of its header, and its payload."""
    return {"header": message.header._asdict(), "payload": message.payload.hex()}


def event_objects(
    events: tuple[Event, ...], time: int, reader: TraceReader, session: int, names: Names, first: int
) -> Iterator[Object]:
    """What happened beside the messages; ``data`` is None where what was in memory is not in the file."""
    when = {"session": session, **_times(time, first)}
    for event in events:
        if isinstance(event, Access):
            yield {
                "type": "memory",
                **when,
                "access": "write" if event.write else "read",
                "address": event.address,
                "length": event.length,
                "in_place": event.in_place,
                "data": _data(event, reader),
            }
        else:
            yield {"type": "interrupt", **when, **_irq(event.index, names), "vector": event.vector}


def look_objects(
    item: TracedLook, reader: TraceReader, session: int, names: Names, first: int
) -> Iterator[Object]:
    """What was found in mappable areas; ``data`` is None where that is not in the file."""
    when = {"session": session, **_times(item.time, first)}
    for change in item.look.changes:
        yield {
            "type": "area",
            **when,
            **_region(change.region, names),
            "offset": change.offset,
            "length": change.length,
            "data": _data(change, reader),
        }
    if item.look.whole:
        yield {"type": "look", **when}


def _data(access: Access | AreaChange, reader: TraceReader) -> str | None:
    try:
        return reader.data(access).hex()
    except TraceError:
        return None


def malformed_object(item: TracedMalformed, session: int, first: int) -> Object:
    """What is no message."""
    malformed: Object = {
        "type": "malformed",
        "session": session,
        **_times(item.time, first),
        "direction": _direction(item.inbound),
        "reason": item.malformed.reason,
        "data": item.malformed.data.hex(),
    }
    if item.facts.twin:
        malformed["twin"] = True
    if item.facts.fds:
        malformed["fds"] = [_fd(facts) for facts in item.facts.fds]
    return malformed


def _direction(inbound: bool) -> str:
    return "client-to-server" if inbound else "server-to-client"


def value_object(value: Request | Reply, names: Names) -> Object:
    """The fields of a request or of a reply of success, with names where there are some."""
    return _SPECIAL.get(type(value), _plain_fields)(value, names)


def _times(time: int, first: int) -> Object:
    return {"time": (time - first) / _NS, "timestamp": time}


def _fd(facts: FdFacts) -> Object:
    known = asdict(facts)
    return {name: value for name, value in known.items() if name not in ("size", "seals") or value >= 0}


def _answer(decoded: DecodedMessage) -> Object:
    """What only replies have."""
    answer: Object = {}
    if decoded.request is not None and decoded.latency is not None:
        answer["reply_to"] = decoded.request.message.number
        answer["latency_us"] = decoded.latency / _NS_PER_US
    if decoded.is_error:
        error = decoded.message.header.error
        answer.update(errno=error, errno_name=errno_name(error))
    return answer


def _said(decoded: DecodedMessage, names: Names) -> Object:
    if decoded.value is None:
        return {"reason": decoded.reason, "payload": decoded.message.payload.hex()}
    return {} if isinstance(decoded.value, ErrorReply) else value_object(decoded.value, names)


def _plain_fields(value: Any, _names: Names) -> Object:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    """What JSON has, for anything that a message can hold."""
    if isinstance(value, IntFlag):
        return flag_names(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "kind": type(value).__name__,
            **{one.name: _plain(getattr(value, one.name)) for one in fields(value)},
        }
    if isinstance(value, tuple):
        named = getattr(value, "_asdict", None)
        return [_plain(one) for one in value] if named is None else named()
    return value


def _access(value: RegionRead | RegionReadReply | RegionWrite | RegionWriteReply, names: Names) -> Object:
    known: Object = {
        **_region(value.region, names),
        "register": names.register(value.region, value.offset),
        "offset": value.offset,
    }
    if isinstance(value, RegionRead | RegionWriteReply):
        return {**known, "count": value.count}
    return {**known, "count": len(value.data), "data": value.data.hex()}


def _region(index: int, names: Names) -> Object:
    return {"region": names.region(index), "region_index": index}


def _irq(index: int, names: Names) -> Object:
    return {"irq": names.irq(index), "irq_index": index}


def _writes(value: RegionWriteMulti, names: Names) -> Object:
    return {"writes": [_access(write, names) for write in value.writes]}


def _about_region(value: Any, names: Names) -> Object:
    return {**_region(value.index, names), **_without(_plain_fields(value, names), ("index",))}


def _about_irq(value: Any, names: Names) -> Object:
    return {**_irq(value.index, names), **_without(_plain_fields(value, names), ("index",))}


def _set_irqs(value: SetIrqs, names: Names) -> Object:
    return {**_without(_about_irq(value, names), ("data",)), "data_type": value.data.name}


def _feature(value: DeviceFeature, names: Names) -> Object:
    known = {feature.value: feature.name for feature in Feature}
    return {**_plain_fields(value, names), "feature": known.get(value.feature, value.feature)}


def _without(whole: Object, names: Iterable[str]) -> Object:
    return {name: value for name, value in whole.items() if name not in names}


_SPECIAL: dict[type, Callable[[Any, Names], Object]] = {
    RegionRead: _access,
    RegionReadReply: _access,
    RegionWrite: _access,
    RegionWriteReply: _access,
    RegionWriteMulti: _writes,
    GetRegionInfo: _about_region,
    RegionInfo: _about_region,
    GetRegionIoFds: _about_region,
    RegionIoFds: _about_region,
    GetIrqInfo: _about_irq,
    IrqInfo: _about_irq,
    SetIrqs: _set_irqs,
    DeviceFeature: _feature,
}
