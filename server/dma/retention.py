"""Which pages that nobody pins any more stay in the domain, so that pinning them again costs nothing.

Retained pages are runs with count 0. Their STAMP is the number of the release that made them so; whoever is pinned
again loses it. The least recently used ones are therefore those with the smallest stamps.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from server.dma.run_rows import END, STAMP, START, Rows, cut, inside
from server.dma.spans import Spans

_SLACK: Final = 16
"""One part in so many of the budget is made free at once, so that not every release looks for the oldest pages."""


def slack(budget: int) -> int:
    """How many pages more than necessary go at once."""
    return budget // _SLACK


def excess(retained: int, budget: int) -> int:
    """How many of ``retained`` pages go when the budget is ``budget`` pages."""
    return retained - budget + slack(budget) if retained > budget else 0


def without(idle: Rows, spans: Spans) -> Rows:
    """The retained runs without what lies in ``spans``: a pin that is being made wants those."""
    idle = cut(idle, np.concatenate((spans.start, spans.end)))
    return idle[:, ~inside(idle, spans)]


def oldest(idle: Rows, pages: int) -> Spans:
    """The ``pages`` pages that were let go first, or all where there are no more."""
    idle = idle[:, np.argsort(idle[STAMP], kind="stable")]
    total = np.cumsum(idle[END] - idle[START])
    count = int(np.searchsorted(total, pages)) + 1
    start, end = idle[START, :count].copy(), idle[END, :count].copy()
    if count <= len(total):
        end[-1] -= total[count - 1] - pages
    order = np.argsort(start)
    return Spans(start[order], end[order])
