"""A line per message, event and session.

Their times are in seconds since ``first`` (ns since 1970), or where that is None, of the day (UTC).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from protocol import HEADER_SIZE, Command, ErrorReply
from protocol.trace import Access, AreaChange, Event, SessionInfo, TraceError
from server.trace.pairing import DecodedMessage
from server.trace.reader import TracedLook, TracedMalformed, TraceReader
from server.trace.text.describe import describe, says_fds
from server.trace.text.names import Names, command_name, errno_name, printable
from server.trace.text.value_text import data_text, fds_text, first_bytes, microseconds, span

_NUMBER = 6
_COMMAND = max(map(len, Command.__members__))
_NS = 1_000_000_000
_US = 1000


def session_line(number: int, info: SessionInfo) -> str:
    """What is known of a session."""
    recorded = [name for name, there in (("memory", info.memory), ("interrupts", info.interrupts)) if there]
    known = [f"recorded by {info.recorder or 'somebody'}"]
    if info.transport:
        known.append(f"transport {info.transport}")
    if info.device:
        known.append(f"device {info.device}")
    known.append(f"with guest {' and '.join(recorded)}" if recorded else "messages only")
    if info.areas:
        known.append("with mapped areas")
    if info.continued:
        known.append("continued: its start is in a file before")
    return printable(f"session {number}: {'; '.join(known)}")


def message_line(decoded: DecodedMessage, names: Names, first: int | None, *, latency: bool = True) -> str:
    """Number, time, direction, command, what it says, and marks in brackets."""
    message = decoded.message
    parts = [
        f"{message.number:>{_NUMBER}}",
        _time(message.time, first),
        "->" if message.inbound else "<-",
        f"{command_name(message.header.command):<{_COMMAND}}",
        *_words(decoded, names),
        *_marks(decoded),
    ]
    if latency and decoded.latency is not None:
        parts.append(f" {microseconds(decoded.latency)}")
    return printable(" ".join(parts).rstrip(" "))


def event_line(event: Event, time: int, reader: TraceReader, names: Names, first: int | None) -> str:
    """What happened beside the messages, in a line without a number."""
    start = f"{'':{_NUMBER}} {_time(time, first)}   "
    if isinstance(event, Access):
        return f"{start} {_access(event, reader)}"
    return f"{start} {'interrupt':<{_COMMAND}} {names.irq(event.index)} {event.vector}"


def look_lines(item: TracedLook, reader: TraceReader, names: Names, first: int | None) -> Iterator[str]:
    """What was found in mappable areas, in lines without a number."""
    start = f"{'':{_NUMBER}} {_time(item.time, first)}   "
    for change in item.look.changes:
        where = f"{names.region(change.region)} {span(change.offset, change.length)}"
        yield f"{start} {'mapped write':<{_COMMAND}} {where} {_content(change, reader)}".rstrip()
    if item.look.whole:
        yield f"{start} {'mapped areas':<{_COMMAND}} looked at"


def malformed_line(item: TracedMalformed, first: int | None) -> str:
    """What is no message, in a line like that of one, without a number."""
    malformed = item.malformed
    words = [
        f"{'':{_NUMBER}}",
        _time(item.time, first),
        "->" if item.inbound else "<-",
        f"{'malformed':<{_COMMAND}}",
        f"{malformed.reason}; {data_text(malformed.data)}",
    ]
    if item.facts.fds:
        words.append(f"with {fds_text(item.facts.fds)}")
    if item.facts.twin:
        words.append("[twin]")
    return printable(" ".join(words))


def _time(time: int, first: int | None) -> str:
    """Seconds since ``first``, or the time of day where that is None."""
    if first is not None:
        return f"{(time - first) / _NS:>11.6f}"
    seconds, rest = divmod(time, _NS)
    with suppress(OverflowError, ValueError, OSError):
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // _US:06}Z"
    return f"@{seconds}.{rest // _US:06}"  # as date(1) takes it, behind the last year that it has


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
    words = [
        f"{'memory write' if access.write else 'memory read':<{_COMMAND}}",
        span(access.address, access.length),
        "in place" if access.in_place else "",
        _content(access, reader),
    ]
    return " ".join(filter(None, words))


def _content(access: Access | AreaChange, reader: TraceReader) -> str:
    try:
        data = reader.data(access)
    except TraceError:
        return "which is not in this file"
    return first_bytes(data)
