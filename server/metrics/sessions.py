"""Metrics of the server's sessions: what clients did, and what the one that is attached holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from server.dma.address_space import PAGE_SIZE
from server.engine import Engine
from server.metrics.families import Family, counter, gauge
from server.session_totals import session_totals

_COUNTERS = (
    ("dma_maps", "vgpud_dma_maps", "DMA regions that clients mapped.", 1),
    ("dma_unmaps", "vgpud_dma_unmaps", "DMA_UNMAP requests that were served.", 1),
    ("resets", "vgpud_device_resets", "Device resets that clients asked for.", 1),
    ("errors", "vgpud_request_errors", "Requests of attached clients that were answered with an error.", 1),
    ("interrupts", "vgpud_interrupts", "Interrupts that clients were told of.", 1),
    ("messages", "vgpud_dma_messages", "DMA_READ and DMA_WRITE messages that were sent to clients.", 1),
    ("hits", "vgpud_pin_cache_hit_bytes", "Pinned memory that was in the DMA domain already.", PAGE_SIZE),
    (
        "misses",
        "vgpud_pin_cache_miss_bytes",
        "Pinned memory that had to be mapped into the domain.",
        PAGE_SIZE,
    ),
    ("evicted", "vgpud_pin_cache_evicted_bytes", "Retained memory that had to make room.", PAGE_SIZE),
    ("invalidations", "vgpud_pin_invalidations", "DMA_UNMAP requests that hit memory in the domain.", 1),
    ("revoked", "vgpud_pins_revoked", "Pins that the device did not release in time.", 1),
)
"""Name in ``vgpud status``, name of the family, help, and what one is in the family's unit."""

_GAUGES = (
    ("regions", "vgpud_dma_regions", "DMA regions of the attached client.", 1),
    ("mapped_bytes", "vgpud_dma_region_bytes", "Guest memory in the DMA regions of the attached client.", 1),
    ("files", "vgpud_dma_files", "Files that back the attached client's DMA regions.", 1),
    ("pins", "vgpud_pins", "Pins that the device holds.", 1),
    ("pinned_pages", "vgpud_pinned_bytes", "Guest memory that is pinned.", PAGE_SIZE),
    ("retained_pages", "vgpud_retained_bytes", "Guest memory that stays mapped unpinned.", PAGE_SIZE),
    ("locked_bytes", "vgpud_locked_bytes", "Memory that counts against the limit of --max-pinned.", 1),
)
"""As above; 0 where no client is attached."""


def session_families(engine: Engine) -> list[Family]:
    """All sessions since the server began, and the memory of the one that is attached."""
    session = engine.session
    totals = Counter(engine.past)
    memory: Mapping[str, object] = {}
    if session is not None:
        totals.update(session_totals(session))
        memory = session.memory.stats()
    families = [
        counter("vgpud_sessions", "Clients that were attached to the device.", engine.clients_served),
        gauge(
            "vgpud_client_attached", "Whether a client is attached to the device.", int(session is not None)
        ),
        counter("vgpud_region_accesses", "Accesses to regions of the device that reached it.")
        .add(totals["region_reads"], {"access": "read"})
        .add(totals["region_writes"], {"access": "write"}),
    ]
    families += [counter(name, text, totals[key] * unit) for key, name, text, unit in _COUNTERS]
    families += [gauge(name, text, _int(memory, key) * unit) for key, name, text, unit in _GAUGES]
    return families


def _int(values: Mapping[str, object], key: str) -> int:
    value = values.get(key, 0)
    return value if isinstance(value, int) else 0
