"""``vgpud trace replay``: arguments in, what was found out."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack
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
from server.trace.replay.replay import SHARED, Hosted, host, replay
from server.trace.replay.report import Report
from server.trace.show.lines import message_line
from server.trace.show.names import Names
from server.trace.show.pairing import DecodedMessage, walk
from server.transports import choose_transport

RECORDED = "recorded"
NOT_EXACT = (
    "with --memory shared, what the guest changed while the device looked at it cannot be repeated: "
    "see whether --memory message finds the same"
)


def run_replay(arguments: argparse.Namespace) -> int:
    """Replay a trace; 0 only if nothing diverged. Raises TraceError and OSError."""
    logging.configure("console", "error")
    comparison = Comparison([Mask.parse(text) for text in arguments.mask])
    options = ReplayOptions(arguments.timeout, original_timing=arguments.timing == "original")
    same = True
    with ExitStack() as stack:
        reader = stack.enter_context(TraceReader(arguments.file))
        numbers = session_numbers(reader, arguments.session)
        sessions = [RecordedSession(reader, number) for number in numbers]
        try:
            server = _server(arguments, sessions[0])
        except (OptionError, TransportUnavailable) as error:
            return fail(error)
        if isinstance(server, Hosted):
            stack.callback(server.engine.device.close)
        for session in sessions:
            if len(sessions) > 1:
                sys.stdout.write(f"session {session.number}:\n")
            how = functools.partial(replay, memory=arguments.memory, comparison=comparison, options=options)
            report = trio.run(how, session, server)
            _print(report, session)
            if not report.same and shares_in_vain(session, arguments.memory):
                sys.stdout.write(f"{NOT_EXACT}\n")
            same = same and report.same
    return 0 if same else EXIT_FAILURE


def shares_in_vain(session: RecordedSession, memory: str) -> bool:
    """Whether there is a more exact way to replay ``session`` than the one that was asked for."""
    return memory == SHARED and session.info.memory


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
    sys.stdout.writelines(f"{line}\n" for line in report_lines(report, session))


def report_lines(report: Report, session: RecordedSession) -> Iterator[str]:
    """The first divergence with what came before it, and a summary."""
    first = report.first
    if first is not None:
        names = Names(session.info.device)
        for walked in walk(first.before):
            if isinstance(walked, DecodedMessage):
                yield message_line(walked, names, session.began, latency=False)
        yield f"{'at the end' if first.at is None else f'message {first.at.number}'}: {first.what}"
    if report.divergences > 1:
        yield f"{report.divergences - 1} more divergences"
    if report.stopped is not None:
        yield f"stopped: {report.stopped}"
    yield (
        f"{report.sent} messages sent; {report.replies} replies, {report.requests} requests, {report.writes} writes to "
        f"guest memory and {report.interrupts} interrupts compared: "
        f"{'all as recorded' if report.same else f'{report.divergences} not as recorded'}"
    )
    if report.cut_short:
        yield f"the trace was cut short: the last {report.cut_short} bytes are less than a block"
