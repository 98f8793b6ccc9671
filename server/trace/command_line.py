"""``vgpud trace ...``: the arguments; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from protocol.trace import TraceError
from server.exit_status import fail
from server.trace.diff.arguments import context_size
from server.trace.replay.arguments import seconds, session_number
from server.trace.ring import DEFAULT_LIMIT
from server.transport_names import AUTO, CHOICES

Run = Callable[[argparse.Namespace], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_trace(commands: Subparsers) -> None:
    """Add ``trace`` and what it can do to the command line."""
    parser = commands.add_parser("trace", help="record, show, replay, compare and export vfio-user sessions")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_record(actions)
    _add_show(actions)
    _add_replay(actions)
    _add_diff(actions)
    _add_export(actions)


def _add_record(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "record", help="stand between a client and a server, and record what they say"
    )
    parser.add_argument("--listen", type=Path, required=True, metavar="A", help="socket for the client")
    parser.add_argument("--connect", type=Path, required=True, metavar="B", help="socket of the server")
    parser.add_argument(
        "--full",
        action="store_true",
        help="make every access to memory a message: DMA regions go to the server without their files, regions of "
        "the device are not mappable, and the server's DMA_READ and DMA_WRITE are answered from the client's memory",
    )
    parser.add_argument(
        "--once", action="store_true", help="end when the first client has left; else until stopped"
    )
    parser.add_argument(
        "--trace-limit",
        metavar="SIZE",
        default=DEFAULT_LIMIT,
        help="bytes of the trace at most, in a ring of FILE, FILE.1, FILE.2, FILE.3; or none (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format", choices=("console", "json"), default="console", help="default: %(default)s"
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(handler=_record)


def _add_show(actions: Subparsers) -> None:
    parser = actions.add_parser("show", help="print a trace, a line per message")
    parser.add_argument(
        "--command", action="append", metavar="NAME", help="only this command; may be given several times"
    )
    parser.add_argument(
        "--region",
        action="append",
        metavar="NAME",
        help="only accesses to this region: BAR4, CONFIG or a number",
    )
    parser.add_argument(
        "--register",
        action="append",
        metavar="NAME",
        help="only accesses to this register, by the name that is shown; common.* is all that begin so",
    )
    parser.add_argument("--errors", action="store_true", help="only error replies, and what they answer")
    parser.add_argument(
        "--since",
        type=_seconds,
        metavar="SECONDS",
        help="only from so many seconds after the first message on",
    )
    parser.add_argument(
        "--until",
        type=_seconds,
        metavar="SECONDS",
        help="only up to so many seconds after the first message",
    )
    parser.add_argument("--session", type=session_number, metavar="N", help="only this session")
    parser.add_argument(
        "--absolute",
        action="store_true",
        help="the time of day (UTC) instead of seconds since the first message",
    )
    parser.add_argument(
        "--events", action="store_true", help="also what never crossed the socket: guest memory, interrupts"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="go on with what is recorded meanwhile, in FILE or those that take its place, until the recording ends",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stats", action="store_true", help="a summary instead: counts, latencies, bytes, gaps")
    how.add_argument("--json", action="store_true", help="a line of JSON per message")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(handler=_show)


def _add_replay(actions: Subparsers) -> None:
    parser = actions.add_parser("replay", help="do what the client did, and compare what the server does")
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument(
        "--connect", type=Path, metavar="SOCKET", help="the server, freshly started, on SOCKET"
    )
    server.add_argument(
        "--serve",
        metavar="DEVICE",
        help="a device in this process, as serve's --device; 'recorded' is the one of the trace",
    )
    parser.add_argument(
        "--transport",
        choices=CHOICES,
        default=AUTO,
        help="with --serve: what speaks vfio-user (default: %(default)s)",
    )
    parser.add_argument(
        "--memory",
        choices=("auto", "shared", "message"),
        default="auto",
        help="how the server reaches guest memory: by messages, which are answered with exactly what was recorded, or "
        "by files that the replay makes (shared), which is not exact where guest and device did not take turns; auto "
        "is message if guest memory was recorded (default: %(default)s)",
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="REGION:OFFSET[:LENGTH[:BITS]]",
        help="do not compare these bits of what is read from a region, for example CONFIG:0x3c or BAR0:8:4:0xff",
    )
    parser.add_argument(
        "--session",
        type=session_number,
        metavar="N",
        help="only this session of the trace (default: all); with --serve, those before it bring the device there",
    )
    parser.add_argument(
        "--all", action="store_true", help="print not only the first divergence, but up to a hundred"
    )
    parser.add_argument("--timing", choices=("fast", "original"), default="fast", help="default: %(default)s")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="wait so long for the server (default: %(default)s)",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(handler=_replay)


def _add_diff(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "diff", help="what differs between two traces, message by message; exit status 0 where nothing does"
    )
    parser.add_argument(
        "--context", type=context_size, default=2, metavar="N", help="equal messages around each (default: 2)"
    )
    parser.add_argument("--events", action="store_true", help="compare guest memory and interrupts, too")
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.set_defaults(handler=_diff)


def _add_export(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "export", help="the messages as JSON lines, or what was on the screen as pictures"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--json", type=Path, metavar="OUTPUT", help="JSON lines, everything that is in the trace; - is stdout"
    )
    what.add_argument(
        "--frames", type=Path, metavar="FOLDER", help="a PNG for each picture that the guest showed"
    )
    what.add_argument(
        "--animation", type=Path, metavar="OUTPUT.png", help="one animated PNG, or .gif or .webp"
    )
    parser.add_argument(
        "--scanout", type=int, default=0, metavar="N", help="which screen (default: %(default)s)"
    )
    parser.add_argument(
        "--session", type=int, default=1, metavar="N", help="which session of the trace (default: 1)"
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(handler=_export)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _guarded(run: Run, arguments: argparse.Namespace) -> int:
    try:
        return run(arguments)
    except TraceError as error:
        return fail(error)
    except BrokenPipeError:
        return 0  # who reads has seen enough
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return fail(f"{where}{error.strerror or error}")


def _record(arguments: argparse.Namespace) -> int:
    from server.trace.proxy.command import run_record  # noqa: PLC0415

    return _guarded(run_record, arguments)


def _show(arguments: argparse.Namespace) -> int:
    from server.trace.show.command import run_show  # noqa: PLC0415

    return _guarded(run_show, arguments)


def _replay(arguments: argparse.Namespace) -> int:
    from server.trace.replay.command import run_replay  # noqa: PLC0415

    return _guarded(run_replay, arguments)


def _diff(arguments: argparse.Namespace) -> int:
    from server.trace.diff.command import run_diff  # noqa: PLC0415

    return _guarded(run_diff, arguments)


def _export(arguments: argparse.Namespace) -> int:
    from server.trace.export.command import run_export  # noqa: PLC0415

    return _guarded(run_export, arguments)
