"""``vgpud trace replay``: arguments in, what was found out."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import trio

from devices.models import MODELS
from devices.registry import OptionError, create_device
from protocol.trace import TraceError
from server import log as logging
from server.exit_status import EXIT_FAILURE, fail
from server.native.transport import TransportUnavailable
from server.trace.reader import TraceReader
from server.trace.replay.comparison import Comparison, Mask
from server.trace.replay.intervals import RecordedSession, session_numbers
from server.trace.replay.player import ReplayOptions
from server.trace.replay.replay import AUTO, MESSAGE, Hosted, choose_memory, host, replay
from server.trace.replay.report import Report
from server.transports import choose_transport

RECORDED = "recorded"


def run_replay(arguments: argparse.Namespace) -> int:
    """Replay a trace; 0 only if nothing diverged. Raises TraceError and OSError."""
    logging.configure("console", "error")
    comparison = Comparison([Mask.parse(text) for text in arguments.mask])
    options = ReplayOptions(arguments.timeout, original_timing=arguments.timing == "original")
    same = True
    with TraceReader(arguments.file) as reader:
        numbers = session_numbers(reader, arguments.session)
        sessions = [RecordedSession(reader, number) for number in numbers]
        try:
            server = _server(arguments, sessions[0])
        except (OptionError, TransportUnavailable) as error:
            return fail(error)
        for session in sessions:
            how = choose_memory(session, arguments.memory)
            if len(sessions) > 1:
                sys.stdout.write(f"session {session.number}:\n")
            if how == MESSAGE and arguments.memory == AUTO:
                sys.stderr.write("the guest raced with the device: its memory is replayed by message\n")
            report = trio.run(
                functools.partial(replay, memory=how, comparison=comparison, options=options), session, server
            )
            _print(report, session)
            same = same and report.same
    return 0 if same else EXIT_FAILURE


def _server(arguments: argparse.Namespace, session: RecordedSession) -> Path | Hosted:
    """Raises TraceError, OptionError, TransportUnavailable."""
    if arguments.connect is not None:
        path: Path = arguments.connect
        return path
    text = arguments.serve
    if text == RECORDED:
        text = session.info.device
        if not text:
            raise TraceError(f"{arguments.file} does not say which device it is of: give --serve DEVICE")
    device = create_device(MODELS, text)
    return host(device, choose_transport(arguments.transport, device).transport)


def _print(report: Report, session: RecordedSession) -> None:
    out = sys.stdout.write
    first = report.first
    if first is not None:
        for message in first.before:
            out(
                f"  {message.number} {message.direction.name} {message.header} {bytes(message.payload[:24]).hex()}\n"
            )
        number = "the end" if first.at is None else f"message {first.at.number}"
        out(f"{number}: {first.what}\n")
    if report.divergences > 1:
        out(f"{report.divergences - 1} more divergences\n")
    if report.stopped is not None:
        out(f"stopped: {report.stopped}\n")
    out(
        f"{report.sent} messages sent, {report.replies} replies, {report.requests} requests, {report.writes} writes "
        f"to guest memory and {report.interrupts} interrupts compared: "
        f"{'all as recorded' if report.same else f'{report.divergences} divergences'}\n"
    )
    if report.cut_short:
        out(f"the trace was cut short: {report.cut_short} bytes of a block without its end were left out\n")
