"""Where the limits of pinned memory come from."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from server.dma.limits import PinLimits, memlock_limit, pin_limits

EIGHT_MIB = 8 << 20
STATUS = "Name:\tpython\nCapInh:\t0000000000000000\nCapEff:\t{:016x}\n"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without privileges, that may lock 8 MiB."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (EIGHT_MIB, 1 << 30))
    monkeypatch.setattr(Path, "read_text", lambda _: STATUS.format(0))


def test_memory_that_is_not_locked_has_a_limit_of_its_own() -> None:
    assert pin_limits(None, "0", locks_memory=False) == PinLimits(4 << 30, 0, "--max-pinned")


@pytest.mark.usefixtures("limited")
def test_memory_that_is_locked_is_limited_as_any_programs_is() -> None:
    assert pin_limits(None, "1M", locks_memory=True) == PinLimits(EIGHT_MIB, 1 << 20, "RLIMIT_MEMLOCK")
    assert pin_limits("memlock", "0", locks_memory=False) == PinLimits(EIGHT_MIB, 0, "RLIMIT_MEMLOCK")
    assert pin_limits("1G", "0", locks_memory=True) == PinLimits(1 << 30, 0, "--max-pinned")


@pytest.mark.usefixtures("limited")
def test_who_may_lock_any_amount_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: STATUS.format(1 << 14))  # CAP_IPC_LOCK, capabilities(7)
    assert memlock_limit() is None
    assert pin_limits(None, "1G", locks_memory=True) == PinLimits(None, 1 << 30, "RLIMIT_MEMLOCK")


@pytest.mark.usefixtures("limited")
def test_more_cannot_be_retained_than_may_be_mapped() -> None:
    with pytest.raises(ValueError, match="--dma-retain is more than RLIMIT_MEMLOCK permits"):
        pin_limits(None, "9M", locks_memory=True)


@pytest.mark.parametrize(
    ("pinned", "retain", "option"), [("x", "0", "--max-pinned"), ("1G", "x", "--dma-retain")]
)
def test_a_bad_size_names_its_option(pinned: str, retain: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: 'x' is not a size"):
        pin_limits(pinned, retain, locks_memory=False)
