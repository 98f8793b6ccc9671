"""``vgpud trace show``: a trace as lines, as JSON, or summed up."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from protocol.trace import TraceError
from server.trace.output import standard_output, warn_cut_short
from server.trace.pairing import DecodedMessage, walk
from server.trace.place import Place
from server.trace.reader import TracedEvents, TracedLook, TracedMalformed, TracedSession, TraceReader
from server.trace.show.follow import open_followed
from server.trace.show.selection import Selection
from server.trace.show.statistics import Statistics, report
from server.trace.text.as_json import event_objects, look_objects, malformed_object, message_object
from server.trace.text.lines import event_line, look_lines, malformed_line, message_line, session_line


def run_show(arguments: argparse.Namespace) -> int:
    """Print a trace; the exit status. Raises TraceError, after what comes before the damage, and OSError."""
    selection = Selection.parse(arguments)
    if arguments.follow:
        _refuse_ends(arguments)
    with _reader(arguments) as reader:
        with standard_output() as output:
            if arguments.stats:
                _summarise(reader, selection, output)
            elif arguments.json:
                _print(_objects(reader, selection, arguments.events), output, at_once=arguments.follow)
            else:
                lines = _lines(reader, selection, arguments.events, arguments.absolute)
                _print(lines, output, at_once=arguments.follow)
        warn_cut_short(reader)
    return 0


def _refuse_ends(arguments: argparse.Namespace) -> None:
    for option, given in (("--stats", arguments.stats), ("--until", arguments.until is not None)):
        if given:
            raise TraceError(f"--follow goes on until the recording ends: it does not go with {option}")


def _reader(arguments: argparse.Namespace) -> TraceReader:
    if arguments.follow:
        return open_followed(arguments.file, sys.stdout, contents=arguments.events)
    return TraceReader(arguments.file)


def _print(lines: Iterable[str], output: TextIO, *, at_once: bool = False) -> None:
    """``at_once``: each line when it is known, for somebody who waits for it."""
    if not at_once:
        output.writelines(line + "\n" for line in lines)
        return
    for line in lines:
        output.write(line + "\n")
        output.flush()


def _summarise(reader: TraceReader, selection: Selection, output: TextIO) -> None:
    statistics, place = Statistics(), Place()
    try:
        for item in selection.select(statistics.follow(place.follow(walk(reader))), place):
            statistics.add(item)
    finally:
        _print(report(statistics, place.first), output)


def _lines(reader: TraceReader, selection: Selection, events: bool, absolute: bool) -> Iterator[str]:
    place = Place()
    for item in selection.select(place.follow(walk(reader)), place):
        first = None if absolute else place.first
        if isinstance(item, DecodedMessage):
            yield message_line(item, place.names, first)
        elif isinstance(item, TracedSession):
            yield session_line(place.session, item.info)
        elif isinstance(item, TracedEvents) and events:
            for event in item.events:
                yield event_line(event, item.time, reader, place.names, first)
        elif isinstance(item, TracedLook) and events:
            yield from look_lines(item, reader, place.names, first)
        elif isinstance(item, TracedMalformed):
            yield malformed_line(item, first)


def _objects(reader: TraceReader, selection: Selection, events: bool) -> Iterator[str]:
    place = Place()
    for item in selection.select(place.follow(walk(reader)), place):
        where = place.session, place.names, place.first
        if isinstance(item, DecodedMessage):
            yield json.dumps(message_object(item, *where))
        elif isinstance(item, TracedEvents) and events:
            yield from map(json.dumps, event_objects(item.events, item.time, reader, *where))
        elif isinstance(item, TracedLook) and events:
            yield from map(json.dumps, look_objects(item, reader, *where))
        elif isinstance(item, TracedMalformed):
            yield json.dumps(malformed_object(item, place.session, place.first))
