"""``vgpud trace diff``: what differs between two recordings, message by message.

Compared is what messages say (:mod:`server.trace.diff.meaning`), not when, each reply with the one to the same request
(:mod:`server.trace.diff.exchanges`); with ``--events`` also guest memory and interrupts; not what was in areas that the
client had mapped, which is found at any time. The exit status is 0 where nothing differs and 1 where something does; as
with all of vgpud, it is also 1, with a line on standard error, where a file cannot be read.
"""

from __future__ import annotations

import argparse

from server.trace.diff.alignment import Step, align
from server.trace.diff.differences import Report
from server.trace.diff.resynchronising import find_far
from server.trace.diff.sides import MAX_ITEMS, Side
from server.trace.output import standard_output, warn_cut_short
from server.trace.reader import TraceReader
from server.trace.text.value_text import plural


def run_diff(arguments: argparse.Namespace) -> int:
    """Print what differs; the exit status. Raises TraceError, after what comes before the damage, and OSError."""
    with TraceReader(arguments.a) as reader_a, TraceReader(arguments.b) as reader_b:
        a, b = (Side(reader, events=arguments.events) for reader in (reader_a, reader_b))
        with standard_output() as output:
            report = Report(output, arguments.context, arguments.a, arguments.b, events=arguments.events)
            Comparison(a, b, report).run()
            report.summary()
        for side in (a, b):
            warn_cut_short(side.reader)
        error = a.error or b.error
        if error is not None:
            raise error
    return 1 if report.differs else 0


class Comparison:
    """Goes through two traces side by side."""

    def __init__(self, a: Side, b: Side, report: Report) -> None:
        self._a = a
        self._b = b
        self._report = report
        self._blocks = 1
        """How much is given up as different when the traces do not meet again; looking for where costs more."""

    def run(self) -> None:
        """To the end of both, or to the damage in one."""
        a, b = self._a, self._b
        while True:
            one, other = a.at(0), b.at(0)
            if one is not None and other is not None:
                if one.same(other):
                    self._do(Step.EQUAL)
                else:
                    self._differ()
            elif one is not None and not b.broken:
                self._do(Step.ONLY_A)
            elif other is not None and not a.broken:
                self._do(Step.ONLY_B)
            else:
                return

    def _differ(self) -> None:
        steps = align(self._a, self._b)
        if steps:
            self._blocks = 1
            for step in steps:
                self._do(step)
            return
        jump = find_far(self._a, self._b)
        if jump is not None and jump.a + jump.b:
            self._blocks = 1
            self._report.note(
                f"{plural(jump.a, 'message')} of A and {jump.b} of B, behind which they are equal again"
            )
            self._skip(jump.a, jump.b)
            return
        most = MAX_ITEMS * self._blocks
        self._report.note(f"A and B are not found to be equal again; the next {most} messages of each")
        self._skip(most, most)
        self._blocks *= 2

    def _skip(self, of_a: int, of_b: int) -> None:
        """Up to so many messages are only in A, and only in B."""
        for count, side, step in ((of_a, self._a, Step.ONLY_A), (of_b, self._b, Step.ONLY_B)):
            for _ in range(count):
                if side.at(0) is None:
                    break
                self._do(step)

    def _do(self, step: Step) -> None:
        if step is Step.ONLY_A:
            self._report.only(self._a.take(), in_a=True)
        elif step is Step.ONLY_B:
            self._report.only(self._b.take(), in_a=False)
        elif step is Step.CHANGED:
            self._report.changed(self._a.take(), self._b.take())
        else:
            self._report.equal(self._a.take(), self._b.take())
