"""``vgpud trace export``: a trace as JSON lines, or as what was on the screen."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

import trio

from protocol.trace import TraceError
from server import log as logging
from server.trace.export.frames import FrameSink, export_frames
from server.trace.export.json_lines import export_json
from server.trace.export.pictures import Animation, Folder
from server.trace.reader import TraceReader
from server.trace.show.output import standard_output, warn_cut_short


def _opened(path: Path) -> AbstractContextManager[TextIO]:
    return standard_output() if str(path) == "-" else path.open("w")


def run_export(arguments: argparse.Namespace) -> int:
    """Write what was asked for; the exit status. Raises TraceError and OSError."""
    with TraceReader(arguments.file) as reader:
        if arguments.json is not None:
            with _opened(arguments.json) as output:
                export_json(reader, output)
            warn_cut_short(reader)
            return 0
        logging.configure("console", "error")
        sink: FrameSink = (
            Folder(arguments.frames) if arguments.frames is not None else Animation(arguments.animation)
        )
        report = trio.run(export_frames, reader, arguments.session, arguments.scanout, sink)
        count = sink.close()
    if count == 0:
        raise TraceError(f"{arguments.file}: the guest showed nothing on scanout {arguments.scanout}")
    sys.stdout.write(f"{count} pictures\n")
    if not report.same and report.first is not None:
        sys.stderr.write(f"vgpud: the pictures may not be what was seen: {report.first.what}\n")
    return 0
