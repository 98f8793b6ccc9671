"""The model of the whole core inside the machine: a device reads and writes what is pinned, whenever it is pinned."""

from __future__ import annotations

from functools import partial

import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from server.dma.domain import DmaDomain
from tests.guest.dma_engine import PAGE, DmaEngine
from tests.server.dma.memory_model import RETAIN, SETTINGS, Held, MemoryModel
from tests.server.dma.support import WRITE

EXAMPLES = 12


class DeviceModel(MemoryModel):
    """With rules for the device; the subclass has the ``engine``. Something is pinned most of the time."""

    engine: DmaEngine

    def make_domain(self) -> DmaDomain:
        return self.engine.make_domain()

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()

    def unmap_all(self, now: bool) -> None:
        """No rule here, and neither is the next: nothing is left pinned after them."""

    def reset(self, now: bool) -> None:
        """See above."""

    @precondition(lambda self: self.unused())
    @rule(data=st.data(), byte=st.integers(0, 255))
    def device_uses_a_page(self, data: st.DataObject, byte: int) -> None:
        held, number = data.draw(st.sampled_from(self.unused()))
        self.used.add(number)
        file_page, dma_addr = self.mapped[number].file_page, held.pin.dma_addr(number * PAGE)
        assert trio.from_thread.run(self.engine.read, dma_addr) == self.content[file_page]
        if held.prot & WRITE:
            self.content[file_page] = bytes([byte]) * PAGE
            trio.from_thread.run(self.engine.write, dma_addr, self.content[file_page])

    def let_go(self, held: Held) -> None:
        super().let_go(held)
        self.used.clear()

    def unused(self) -> list[tuple[Held, int]]:
        """The pinned pages that the device has not used since something was last released: it takes 0.5 s."""
        return [(held, number) for held in self.held for number in sorted(held.pages - self.used)]


async def the_core_agrees_with_its_model(engine: DmaEngine, domain: str) -> None:
    """Raises what the model raises. The examples are the same every time, and none is made smaller: that takes long.

    Nothing is retained behind an IOMMU, where pages that are released may linger.
    """

    class Model(DeviceModel):
        collide = domain == "noiommu"
        retain = RETAIN if domain == "noiommu" else 0

    Model.engine = engine
    few = settings(
        SETTINGS,
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    await trio.to_thread.run_sync(partial(run_state_machine_as_test, Model, settings=few))
