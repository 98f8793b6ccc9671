"""Everything that is in a trace, as JSON lines for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

from server.trace.pairing import DecodedMessage, walk
from server.trace.place import Place
from server.trace.reader import TracedEvents, TracedLook, TracedMalformed, TracedSession, TraceReader
from server.trace.text.as_json import (
    Object,
    event_objects,
    look_objects,
    malformed_object,
    message_object,
    raw_object,
    session_object,
)


def export_json(reader: TraceReader, output: TextIO) -> None:
    """Write an object per line for each session, message, memory access, interrupt and change of an area, in order.

    They are those of :mod:`server.trace.text.as_json`, and messages have their ``header`` and their whole ``payload``
    in hexadecimal as well. A file that was cut short is exported up to there; :attr:`TraceReader.cut_short` says so
    afterwards. Raises TraceError after what comes before the damage.
    """
    output.writelines(json.dumps(one) + "\n" for one in _objects(reader))


def _objects(reader: TraceReader) -> Iterator[Object]:
    place = Place()
    for item in place.follow(walk(reader)):
        where = place.session, place.names, place.first
        if isinstance(item, TracedSession):
            yield session_object(place.session, item.info)
        elif isinstance(item, DecodedMessage):
            yield {**message_object(item, *where), **raw_object(item.message)}
        elif isinstance(item, TracedEvents):
            yield from event_objects(item.events, item.time, reader, *where)
        elif isinstance(item, TracedLook):
            yield from look_objects(item, reader, *where)
        elif isinstance(item, TracedMalformed):
            yield malformed_object(item, place.session, place.first)
