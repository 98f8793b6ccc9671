"""``vgpud trace export``: a trace as JSON lines, or as what was on the screen."""

from __future__ import annotations

import argparse
import io
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TextIO

from protocol.trace import TraceError
from server import log as logging
from server.run_async import run_async
from server.trace.export.frames import FrameSink, export_frames
from server.trace.export.json_lines import export_json
from server.trace.export.pictures import Animation, Folder
from server.trace.export.private_file import open_private
from server.trace.output import standard_output, warn_cut_short
from server.trace.reader import TraceReader


def run_export(arguments: argparse.Namespace) -> int:
    """Write what was asked for; the exit status. Raises TraceError and OSError."""
    with TraceReader(arguments.file) as reader:
        output: Path | None = arguments.json or arguments.animation
        if output is not None and any(file.is_at(output) for file in reader.files):
            raise TraceError(f"{output}: is the trace itself: give another OUTPUT")
        if arguments.json is None:
            return _export_pictures(arguments, reader)
        with _opened(arguments.json) as lines:
            export_json(reader, lines)
        warn_cut_short(reader)
    return 0


def _opened(path: Path) -> AbstractContextManager[TextIO]:
    return standard_output() if str(path) == "-" else io.TextIOWrapper(open_private(path), encoding="utf-8")


def _export_pictures(arguments: argparse.Namespace, reader: TraceReader) -> int:
    logging.configure("console", "error")
    sink: FrameSink = (
        Folder(arguments.frames) if arguments.frames is not None else Animation(arguments.animation)
    )
    with closing(sink):
        report = run_async(export_frames, reader, arguments.session, arguments.scanout, sink)
        count = sink.finish()
    if count == 0:
        raise TraceError(f"{reader.path}: the guest showed nothing on scanout {arguments.scanout}")
    sys.stdout.write(f"{count} picture{'' if count == 1 else 's'}\n")
    if not report.same and report.first is not None:
        sys.stderr.write(f"vgpud: the pictures may not be what was seen: {report.first.what}\n")
    return 0
