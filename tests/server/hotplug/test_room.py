"""Whether a BAR has room behind a port; the answers are in the form of QEMU 11.1's query-pci."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.hotplug.room import bar_without_room
from tests.server.hotplug.fake_qemu import FakeQemu, Json, returns, talking_to

MIB = 1 << 20
SMALL = {"base": 0xFEA00000, "limit": 0xFEBFFFFF}
LARGE = {"base": 0xFC000000, "limit": 0xFDFFFFFF}
CLOSED = {"base": 0xFFF00000, "limit": 0xFFFFF}


def region(size: int, *, prefetch: bool, kind: str = "memory") -> Json:
    return {"bar": 0, "type": kind, "size": size, "address": -1, "prefetch": prefetch}


def pci(memory: Json, prefetchable: Json, *regions: Json) -> list[Json]:
    device = {"bus": 1, "slot": 0, "function": 0, "qdev_id": "vgpud0", "regions": list(regions)}
    windows = {"number": 0, "memory_range": memory, "prefetchable_range": prefetchable}
    port = {"bus": 0, "slot": 1, "function": 0, "pci_bridge": {"bus": windows, "devices": [device]}}
    return [{"bus": 0, "devices": [port]}]


@pytest.mark.parametrize(
    ("answer", "size"),
    [
        (pci(SMALL, SMALL, region(2 * MIB, prefetch=True), region(4096, prefetch=False)), None),
        (pci(SMALL, SMALL, region(16 * MIB, prefetch=True), region(4096, prefetch=False)), 16 * MIB),
        (pci(SMALL, LARGE, region(16 * MIB, prefetch=True)), None),
        (pci(LARGE, CLOSED, region(16 * MIB, prefetch=True)), None),
        (pci(SMALL, LARGE, region(16 * MIB, prefetch=False)), 16 * MIB),
        (pci(CLOSED, CLOSED, region(4096, prefetch=False), region(8192, prefetch=True)), 8192),
        (pci(CLOSED, CLOSED, region(16 * MIB, prefetch=False, kind="io")), None),
        ([{"bus": 0, "devices": [{"qdev_id": "vgpud0", "regions": [region(1 << 30, prefetch=True)]}]}], None),
        ([], None),
    ],
    ids=[
        "fits",
        "too large",
        "in its own window",
        "in the other window",
        "only in its own",
        "largest",
        "ports",
        "root bus",
        "not numbered",
    ],
)
async def test_a_bar_is_too_large_for_every_window_that_may_take_it(
    tmp_path: Path, answer: Any, size: int | None
) -> None:
    async with talking_to(FakeQemu(says={"query-pci": lambda _: [returns(answer)]}), tmp_path) as qmp:
        assert await bar_without_room(qmp, "vgpud0") == size
