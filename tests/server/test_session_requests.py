"""A session, request by request: what reaches the device, with which errno, and what is given back."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.contract import GuestMemoryError, GuestRange, Prot
from devices.testing import FakeLog
from devices.work import read_message
from protocol import DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags, IrqAction, IrqData, ProtocolError, SetIrqs
from server.dma.domains.soft import SoftDomain
from server.dma.memory import GuestMemoryMap
from server.fds import ReceivedFds
from server.log import RepeatLimit
from server.session import Session, errno_of
from server.work_queue import MessageRequest, WorkQueue
from tests.fds import open_fds
from tests.server.register_device import (
    BAR0,
    BAR1,
    BAR2,
    BAR5,
    CONFIG,
    MSIX,
    PAGE,
    DeviceBroken,
    RegisterDevice,
)

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
SIZE = 4 * PAGE


class Bench:
    """A session of a register device, and what the session logged and asked for."""

    def __init__(self) -> None:
        self.device = RegisterDevice()
        self.log = FakeLog()
        self.sent: list[MessageRequest] = []
        quiet = RepeatLimit(self.log)
        memory = GuestMemoryMap(quiet, SoftDomain())
        self.session = Session(self.device, memory, WorkQueue(self.sent.append, quiet), quiet)

    def map(self, address: int, *, shared: bool = True, flags: DmaMapFlags = READ_WRITE) -> None:
        with ReceivedFds([memfd()] if shared else []) as fds:
            self.session.dma_map(DmaMap(address, SIZE, flags), fds)

    def events(self, name: str) -> list[tuple[str, dict[str, object]]]:
        return [(level, fields) for level, event, fields in self.log.events if event == name]


def guest_mappings() -> int:
    """How many mappings of the guest's memory this process has; the others are the interpreter's affair."""
    return Path("/proc/self/maps").read_text().count("/memfd:session-guest ")


def memfd() -> int:
    fd = os.memfd_create("session-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    return fd


@pytest.fixture
def bench() -> Iterator[Bench]:
    gc.collect()
    before = open_fds()
    bench = Bench()
    yield bench
    bench.session.close()
    assert open_fds() == before


def access(session: Session, index: int, offset: int, count: int, *, write: bool) -> None:
    if write:
        session.region_write(index, offset, memoryview(bytes(count)))
    else:
        session.region_read(index, offset, count)


def refused(bench: Bench, index: int, offset: int, count: int, *, write: bool) -> int:
    with pytest.raises(ProtocolError) as caught:
        access(bench.session, index, offset, count, write=write)
    return caught.value.errno


def test_what_is_written_is_read_back(bench: Bench) -> None:
    bench.session.region_write(BAR0, PAGE - 4, memoryview(b"abcd"))
    assert bench.session.region_read(BAR0, PAGE - 4, 4) == b"abcd"
    assert bench.session.region_read(CONFIG, 0, 2) == b"\x36\x1b"


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("index", "offset", "count"),
    [
        (BAR0, PAGE, 1),
        (BAR0, PAGE - 3, 4),
        (BAR0, 2**64 - 1, 4),
        (BAR5, 0, 1),
        (9, 0, 4),
        (2**32 - 1, 0, 4),
    ],
)
def test_an_access_outside_of_a_region_is_einval(
    bench: Bench, index: int, offset: int, count: int, write: bool
) -> None:
    bench.device.broken |= {"region_read", "region_write"}
    assert refused(bench, index, offset, count, write=write) == errno.EINVAL
    assert bench.session.counters.region_reads == bench.session.counters.region_writes == 0


@pytest.mark.parametrize(("index", "write"), [(BAR1, True), (BAR2, False)])
def test_an_access_in_a_direction_that_the_region_lacks_is_eperm(
    bench: Bench, index: int, write: bool
) -> None:
    bench.device.broken |= {"region_read", "region_write"}
    assert refused(bench, index, 0, 4, write=write) == errno.EPERM


def test_a_region_that_does_not_exist_cannot_be_described(bench: Bench) -> None:
    assert bench.session.region(CONFIG).name == "CONFIG"
    with pytest.raises(ProtocolError) as caught:
        bench.session.region(9)
    assert caught.value.errno == errno.EINVAL


def test_a_device_that_reads_the_wrong_number_of_bytes_is_at_fault(bench: Bench) -> None:
    bench.device.answer = lambda data: data[:-1]
    with pytest.raises(RuntimeError, match="3 bytes of BAR0 instead of 4") as caught:
        bench.session.region_read(BAR0, 0, 4)
    assert errno_of(caught.value) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ProtocolError(errno.E2BIG, "too big"), errno.E2BIG),
        (GuestMemoryError(errno.EFAULT, "not shared"), errno.EFAULT),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("without a number"), None),
        (DeviceBroken("broken"), None),
        (KeyError(errno.EINVAL), None),
    ],
)
def test_only_errors_that_carry_an_errno_have_one(error: Exception, expected: int | None) -> None:
    assert errno_of(error) == expected


def test_a_refusal_is_logged_by_name_and_counted(bench: Bench) -> None:
    assert bench.session.failed("REGION_READ", ProtocolError(errno.EINVAL, "no such region")) == errno.EINVAL
    expected = {"command": "REGION_READ", "error": "EINVAL", "reason": "no such region"}
    assert bench.events("request_refused") == [("info", expected)]
    assert bench.session.status()["errors"] == 1


def test_a_refusal_by_the_system_is_logged_with_its_text(bench: Bench) -> None:
    assert bench.session.failed("DMA_MAP", OSError(errno.ENOMEM, "no memory")) == errno.ENOMEM
    (event,) = bench.events("request_refused")
    assert event[1]["reason"] == "no memory"


def test_refusals_after_the_first_twenty_are_logged_at_debug(bench: Bench) -> None:
    for _ in range(1000):
        bench.session.failed("REGION_READ", ProtocolError(errno.EINVAL, "no such region"))
    refusals = bench.events("request_refused")
    assert [level for level, _ in refusals] == ["info"] * 20 + ["debug"] * 980
    assert [number for number, (_, fields) in enumerate(refusals, 1) if "further" in fields] == [20]
    assert bench.session.counters.errors == 1000


def test_faults_of_the_device_do_not_count_as_refusals(bench: Bench) -> None:
    for _ in range(30):
        bench.session.failed("RESET", DeviceBroken("broken"))
    bench.session.failed("RESET", ProtocolError(errno.EINVAL, "no"))
    assert [level for level, _ in bench.events("request_refused")] == ["info"]


def test_a_map_with_two_fds_is_refused(bench: Bench) -> None:
    with ReceivedFds([memfd(), memfd()]) as fds, pytest.raises(ProtocolError) as caught:
        bench.session.dma_map(DmaMap(0, SIZE, READ_WRITE), fds)
    assert caught.value.errno == errno.EINVAL
    assert bench.session.counters.dma_maps == 0


def test_unmapping_takes_one_region_or_all(bench: Bench) -> None:
    for address in (0, 0x10000, 0x20000):
        bench.map(address)
    bench.session.begin_dma_unmap(DmaUnmap(0, SIZE, DmaUnmapFlags(0))).finish()
    with pytest.raises(GuestMemoryError):
        bench.session.memory.view(0, 4, Prot.READ)
    assert bench.session.memory.view(0x10000, 4, Prot.READ) is not None
    bench.session.begin_dma_unmap(DmaUnmap(0, 0, DmaUnmapFlags.ALL)).finish()
    with pytest.raises(GuestMemoryError):
        bench.session.memory.view(0x10000, 4, Prot.READ)
    assert (bench.session.counters.dma_maps, bench.session.counters.dma_unmaps) == (3, 2)


def test_reset_reaches_the_device(bench: Bench) -> None:
    bench.session.reset()
    assert bench.device.resets == 1
    assert bench.session.status()["resets"] == 1


@pytest.mark.parametrize("broken", [False, True])
def test_closing_gives_everything_back_whatever_the_device_does(broken: bool) -> None:
    gc.collect()
    fds = open_fds()
    bench = Bench()
    bench.map(0)
    pins = bench.session.memory.pin_pages([GuestRange(0, SIZE)], Prot.WRITE, lambda _pages: None)
    bench.session.memory.view(0, 4, Prot.WRITE)
    with ReceivedFds([os.eventfd(0)]) as eventfds:
        bench.session.set_irqs(SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), eventfds)
    assert open_fds() > fds
    assert guest_mappings() > 0
    errors: list[int | None] = []

    async def work() -> None:
        try:
            await read_message(0, 4)
        except GuestMemoryError as error:
            errors.append(error.errno)

    bench.session.defer(work())
    bench.session.work.run(10**12)
    assert len(bench.sent) == 1
    if broken:
        bench.device.broken.add("disconnect")
    bench.session.close()
    assert bench.device.host is None
    assert errors == [errno.ENODEV]
    assert pins.revoked
    assert (open_fds(), guest_mappings()) == (fds, 0)
    expected = [("warning", {"where": "disconnect", "exc_info": True})] if broken else []
    assert bench.events("device_fault") == expected
