"""A recorder that goes on each time when who follows it has all that is there, a pipe, and what was read."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from protocol.trace import Access, SessionInfo
from server.trace.reader import TracedEvents, TracedMessage, TracedSession, TraceReader
from server.trace.recorder import Recorder
from server.trace.ring import MIN_LIMIT, TraceRing
from server.trace.show.follow import FollowingReader, followed
from tests.server.trace.test_recorder import IN, INFO, PAGE, message_of

SIZE = 50_000
"""Of a message, so that there are about 20 in a file of the smallest ring."""


class Writer:
    """A recorder, each message of which has behind it what the device read, which is stored once per file."""

    def __init__(self, path: Path) -> None:
        self.ring = TraceRing(path, MIN_LIMIT)
        self.next_client()
        self.written = 0
        self._open = True

    def next_client(self) -> None:
        self.recorder = Recorder(self.ring, INFO)
        self.recorder.start()

    def write(self, count: int = 1, *, flush: bool = True) -> None:
        for number in range(self.written, self.written + count):
            self.recorder.message(IN, message_of(number, SIZE))
            self.recorder.read(number * PAGE, page(number))
        self.written += count
        if flush:
            self.recorder.flush()

    def close(self) -> None:
        if self._open:
            self._open = False
            self.ring.close()


def page(number: int) -> bytes:
    return bytes([number % 3]) * PAGE


class Read:
    """What a reader has read so far: sessions, the ids of messages, and what the device read."""

    def __init__(self) -> None:
        self.sessions: list[SessionInfo] = []
        self.ids: list[int] = []
        self.data: list[bytes] = []

    def all_of(self, reader: TraceReader) -> None:
        for one in reader:
            if isinstance(one, TracedSession):
                self.sessions.append(replace(one.info, recording="", file=0))
            elif isinstance(one, TracedMessage):
                self.ids.append(one.header.message_id)
            elif isinstance(one, TracedEvents):
                self.data += [reader.data(event) for event in one.events if isinstance(event, Access)]


@contextmanager
def piped(data: bytes) -> Iterator[Path]:
    """A pipe to which ``data`` is written, as fast as it is read."""

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writer, "wb") as target:
            target.write(data)

    reader, writer = os.pipe()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield Path(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        thread.join()


def follow(path: Path, script: Generator[None], read: Read) -> TraceReader:
    """Read ``path`` to the end of the recording; ``script`` goes on to its next yield at each wait."""
    with closing(script), followed(path, partial(next, script)) as reader:
        read.all_of(reader)
        assert len(reader.files) == 1 or not isinstance(reader, FollowingReader)
    return reader
