"""What sessions have counted, as one flat table, so that the past ones can be added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from server.session import Session

MEMORY_COUNTERS = ("messages", "hits", "misses", "evicted", "invalidations", "revoked")
"""Of the statistics of a session's memory, those that only grow."""


def session_totals(session: Session) -> Counter[str]:
    """The counters of ``session`` by their names in ``vgpud status``."""
    status = session.status()
    totals = Counter({name: value for name, value in status.items() if isinstance(value, int)})
    memory = status["memory"]
    if isinstance(memory, Mapping):
        totals.update({name: memory[name] for name in MEMORY_COUNTERS})
    return totals
