"""DMA domains for real: a device reads and writes guest memory at the dma_addrs that the cache gave."""

from __future__ import annotations

import pytest
import trio

from tests.guest.dma_machine import dma_machine, last_json, run_python
from tests.guest.dma_proof import COMMAND, MODEL, PROOFS
from tests.guest.support import GuestParts

pytestmark = pytest.mark.guest


def outcomes(parts: GuestParts, domain: str) -> dict[str, str]:
    """What each proof came to, in one machine for all of them."""

    async def run() -> dict[str, str]:
        async with dma_machine(parts, iommu=domain == "type1") as guest:
            return last_json(await run_python(guest, "-m", "tests.guest.dma_proof", domain))

    return trio.run(run)


def names(domain: str) -> list[str]:
    return [*(proof.__name__ for proof in PROOFS[domain]), MODEL, COMMAND]


def check(outcome: str) -> None:
    if outcome:
        pytest.fail(outcome, pytrace=False)


@pytest.fixture(scope="module")
def with_an_iommu(parts: GuestParts) -> dict[str, str]:
    return outcomes(parts, "type1")


@pytest.fixture(scope="module")
def without_one(parts: GuestParts) -> dict[str, str]:
    return outcomes(parts, "noiommu")


@pytest.mark.parametrize("proof", names("type1"))
def test_with_an_iommu(with_an_iommu: dict[str, str], proof: str) -> None:
    check(with_an_iommu[proof])


@pytest.mark.parametrize("proof", names("noiommu"))
def test_without_one(without_one: dict[str, str], proof: str) -> None:
    check(without_one[proof])
