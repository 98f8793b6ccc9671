"""A line per message, event and session."""

from __future__ import annotations

from collections.abc import Iterator

from protocol import HEADER_SIZE, ErrorReply
from protocol.trace import Access, Event, SessionInfo, TraceError
from server.trace.reader import TraceReader
from server.trace.show.describe import describe, says_fds
from server.trace.show.names import Names, command_name, errno_name, printable
from server.trace.show.pairing import DecodedMessage
from server.trace.show.value_text import data_text, fds_text, first_bytes, microseconds, span

_NUMBER = 6
_COMMAND = 14
_NS = 1_000_000_000


def session_line(number: int, info: SessionInfo) -> str:
    """What is known of a session."""
    recorded = [name for name, there in (("memory", info.memory), ("interrupts", info.interrupts)) if there]
    known = [f"recorded by {info.recorder or 'somebody'}"]
    if info.transport:
        known.append(f"transport {info.transport}")
    if info.device:
        known.append(f"device {info.device}")
    known.append(f"with guest {' and '.join(recorded)}" if recorded else "messages only")
    if info.continued:
        known.append("continued: its start is in a file before")
    return printable(f"session {number}: {'; '.join(known)}")


def message_line(decoded: DecodedMessage, names: Names, first: int, *, latency: bool = True) -> str:
    """Number, time in seconds since ``first`` (ns), direction, command, what it says, and marks in brackets."""
    message = decoded.message
    parts = [
        f"{message.number:>{_NUMBER}}",
        _time(message.time - first),
        "->" if message.inbound else "<-",
        f"{command_name(message.header.command):<{_COMMAND}}",
        *_words(decoded, names),
        *_marks(decoded),
    ]
    if latency and decoded.latency is not None:
        parts.append(f" {microseconds(decoded.latency)}")
    return printable(" ".join(parts).rstrip(" "))


def event_lines(
    events: tuple[Event, ...], time: int, reader: TraceReader, names: Names, first: int
) -> Iterator[str]:
    """What happened beside the messages, in lines without a number."""
    start = f"{'':{_NUMBER}} {_time(time - first)}   "
    for event in events:
        if isinstance(event, Access):
            yield f"{start} {_access(event, reader)}"
        else:
            yield f"{start} interrupt      {names.irq(event.index)} {event.vector}"


def _time(nanoseconds: int) -> str:
    return f"{nanoseconds / _NS:>11.6f}"


def _words(decoded: DecodedMessage, names: Names) -> Iterator[str]:
    message, value = decoded.message, decoded.value
    fds = message.facts.fds
    if decoded.is_error:
        yield f"error {errno_name(message.header.error)}{_answered(decoded, names)}"
    elif decoded.is_reply:
        yield "reply"
    if value is None:
        yield f"does not decode: {decoded.reason}; {data_text(message.payload)}"
    elif not isinstance(value, ErrorReply):
        yield from filter(None, (describe(value, names, fds),))
    if fds and not says_fds(value):
        yield f"with {fds_text(fds)}"


def _answered(decoded: DecodedMessage, names: Names) -> str:
    """What failed: error replies do not say it themselves."""
    request = decoded.request
    if request is None or request.value is None:
        return ""
    words = describe(request.value, names, request.message.facts.fds)
    return f": {words}" if words else ""


def _marks(decoded: DecodedMessage) -> Iterator[str]:
    message = decoded.message
    if decoded.is_posted:
        yield "[posted]"
    if message.facts.twin:
        yield "[twin]"
    if decoded.is_reply and decoded.request is None:
        yield "[no request]"
    size = HEADER_SIZE + len(message.payload)
    if message.header.size != size:
        yield f"[{size} bytes, where its header says {message.header.size}]"


def _access(access: Access, reader: TraceReader) -> str:
    what = "memory write  " if access.write else "memory read   "
    words = [
        span(access.address, access.length),
        "in place" if access.in_place else "",
        _content(access, reader),
    ]
    return " ".join((what, *filter(None, words)))


def _content(access: Access, reader: TraceReader) -> str:
    try:
        data = reader.data(access)
    except TraceError:
        return "which is not in this file"
    return first_bytes(data)
