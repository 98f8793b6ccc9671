"""``vgpud trace replay``: arguments in, what was found out."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from devices.models import MODELS
from devices.registry import OptionError, create_device
from protocol.trace import TraceError
from server import log as logging
from server.exit_status import EXIT_FAILURE, fail
from server.native.transport import TransportUnavailable
from server.run_async import run_async
from server.trace.output import standard_output
from server.trace.pairing import decode
from server.trace.reader import TraceReader
from server.trace.replay.comparison import Comparison, Mask
from server.trace.replay.intervals import RecordedSession, recorded_sessions
from server.trace.replay.player import ReplayOptions
from server.trace.replay.recorded_device import recorded_device
from server.trace.replay.replay import SHARED, Hosted, host, replay
from server.trace.replay.report import Divergence, Report
from server.trace.text.lines import message_line
from server.trace.text.names import Names
from server.trace.text.value_text import plural
from server.transports import choose_transport

How = Callable[..., Awaitable[Report]]
"""Replays a session to a server."""

RECORDED = "recorded"
NOT_EXACT = (
    "with --memory shared, what the guest changed while the device looked at it cannot be repeated: "
    "see whether --memory message finds the same"
)


CANNOT_BE_READ = "what comes next in the trace cannot be replayed"


class _Servers:
    """The server of each session: the same one, but where the trace is of several devices."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._server: Path | Hosted | None = None
        self._text = ""

    def of(self, session: RecordedSession) -> Path | Hosted:
        """Raises TraceError, OptionError, TransportUnavailable."""
        arguments = self._arguments
        if arguments.connect is not None:
            path: Path = arguments.connect
            return path
        is_recorded = arguments.serve == RECORDED
        text = session.info.device if is_recorded else arguments.serve
        if self._server is None or text != self._text:
            self.close()
            device = recorded_device(session) if is_recorded else create_device(MODELS, text)
            try:
                transport = choose_transport(arguments.transport, device).transport
            except BaseException:
                device.close()
                raise
            self._server, self._text = host(device, transport), text
        return self._server

    def close(self) -> None:
        """Close the device, if there is one."""
        if isinstance(self._server, Hosted):
            self._server.engine.device.close()
        self._server = None


def run_replay(arguments: argparse.Namespace) -> int:
    """Replay a trace; 0 only if nothing diverged. Raises TraceError and OSError."""
    logging.configure("console", "error")
    comparison = Comparison([Mask.parse(text) for text in arguments.mask])
    options = ReplayOptions(arguments.timeout, original_timing=arguments.timing == "original")
    how = functools.partial(replay, memory=arguments.memory, comparison=comparison, options=options)
    servers = _Servers(arguments)
    with TraceReader(arguments.file) as reader:
        try:
            return _replay_sessions(reader, arguments, servers, how)
        except (OptionError, TransportUnavailable) as error:
            return fail(error)
        finally:
            servers.close()


def _replay_sessions(reader: TraceReader, arguments: argparse.Namespace, servers: _Servers, how: How) -> int:
    only, number, same = arguments.session, 0, True
    for session in recorded_sessions(reader):
        number = session.number
        if only is not None and number < only:
            if arguments.connect is None and not session.info.continued:
                _bring_about(session, servers.of(session), how)
            continue
        session.require_beginning()
        if number > 1 and only is None:
            _write([f"session {number}:"])
        report = Report()
        try:
            run_async(functools.partial(how, session, servers.of(session), report=report))
        except TraceError:
            if report.sent:
                report.stop(CANNOT_BE_READ)
                _write(report_lines(report, session, every=arguments.all))
            raise
        _write(report_lines(report, session, every=arguments.all))
        same = same and report.same
        if not report.same:
            _write(_hints(session, arguments))
        if number == only:
            break
    if only is not None and number < only:
        raise TraceError(f"{reader.path}: it has {plural(number, 'session')}, so no session {only}")
    return 0 if same else EXIT_FAILURE


def _bring_about(session: RecordedSession, server: Path | Hosted, how: How) -> None:
    """Have the device be as ``session`` left it. Raises TraceError."""
    report: Report = run_async(how, session, server)
    if not report.same:
        _write(
            [
                f"session {session.number}, which comes before, was not as recorded: what differs may come of that"
            ]
        )


def _hints(session: RecordedSession, arguments: argparse.Namespace) -> Iterator[str]:
    """What may help against divergences."""
    if shares_in_vain(session, arguments.memory):
        yield NOT_EXACT
    if arguments.connect is not None and arguments.session is not None and session.number > 1:
        yield (
            "the sessions before this one left something in the device: replay them too, without --session or "
            "with --serve"
        )


def shares_in_vain(session: RecordedSession, memory: str) -> bool:
    """Whether there is a more exact way to replay ``session`` than the one that was asked for."""
    return memory == SHARED and session.info.memory


def _write(lines: Iterable[str]) -> None:
    """Print; where nobody reads it any more, the exit status still says what was found."""
    with standard_output() as output:
        output.writelines(f"{line}\n" for line in lines)


def report_lines(report: Report, session: RecordedSession, *, every: bool = False) -> Iterator[str]:
    """The first divergence with what came before it, with ``every`` others as well, and a summary."""
    first = report.first
    if first is not None:
        names = Names(session.info.device)
        for message, request in first.before:
            yield message_line(decode(message, request), names, session.began, latency=False)
        yield _divergence_line(first)
    if every:
        yield from map(_divergence_line, report.more)
    left = report.divergences - 1 - (len(report.more) if every else 0)
    if left > 0:
        yield plural(left, "more divergence")
    if report.stopped is not None:
        yield f"stopped: {report.stopped}"
    yield (f"{plural(report.sent, 'message')} sent; {_counts(report)} compared: {_verdict(report)}")
    if report.cut_short:
        yield f"the trace was cut short: the last {plural(report.cut_short, 'byte')} are less than a block"


def _verdict(report: Report) -> str:
    if report.divergences:
        return f"{report.divergences} not as recorded"
    return "all as recorded" if report.same else "as recorded up to there"


def _divergence_line(divergence: Divergence) -> str:
    at = divergence.at
    return f"{'at the end' if at is None else f'message {at.number}'}: {divergence.what}"


def _counts(report: Report) -> str:
    return (
        f"{report.replies} {'reply' if report.replies == 1 else 'replies'}, {plural(report.requests, 'request')}, "
        f"{plural(report.writes, 'write')} to guest memory and {plural(report.interrupts, 'interrupt')}"
    )
