"""``vgpud trace show``: a trace as lines, as JSON, or summed up."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import TextIO

from server.trace.reader import TracedEvents, TracedSession, TraceReader
from server.trace.show.as_json import event_objects, message_object
from server.trace.show.lines import event_lines, message_line, session_line
from server.trace.show.output import standard_output, warn_cut_short
from server.trace.show.pairing import DecodedMessage, walk
from server.trace.show.place import Place
from server.trace.show.selection import Selection
from server.trace.show.statistics import Statistics, report


def run_show(arguments: argparse.Namespace) -> int:
    """Print a trace; the exit status. Raises TraceError, after what comes before the damage, and OSError."""
    selection = Selection.parse(arguments.command, arguments.region, arguments.errors, arguments.since)
    with TraceReader(arguments.file) as reader:
        with standard_output() as output:
            if arguments.stats:
                _summarise(reader, selection, output)
            elif arguments.json:
                _print(_objects(reader, selection, arguments.events), output)
            else:
                _print(_lines(reader, selection, arguments.events), output)
        warn_cut_short(reader)
    return 0


def _print(lines: Iterable[str], output: TextIO) -> None:
    output.writelines(line + "\n" for line in lines)


def _summarise(reader: TraceReader, selection: Selection, output: TextIO) -> None:
    statistics = Statistics()
    try:
        for item in selection.select(walk(reader)):
            statistics.add(item)
    finally:
        _print(report(statistics), output)


def _lines(reader: TraceReader, selection: Selection, events: bool) -> Iterator[str]:
    place = Place()
    for item in selection.select(place.follow(walk(reader))):
        if isinstance(item, DecodedMessage):
            yield message_line(item, place.names, place.first)
        elif isinstance(item, TracedSession):
            yield session_line(place.session, item.info)
        elif isinstance(item, TracedEvents) and events:
            yield from event_lines(item.events, item.time, reader, place.names, place.first)


def _objects(reader: TraceReader, selection: Selection, events: bool) -> Iterator[str]:
    place = Place()
    for item in selection.select(place.follow(walk(reader))):
        where = place.session, place.names, place.first
        if isinstance(item, DecodedMessage):
            yield json.dumps(message_object(item, *where))
        elif isinstance(item, TracedEvents) and events:
            yield from map(json.dumps, event_objects(item.events, item.time, reader, *where))
