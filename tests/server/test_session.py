"""A session: what it checks, what it tells, and what it gives back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from devices.contract import GuestRange, PinnedPages, Prot
from devices.testing import FakeLog
from protocol import DmaMap, DmaMapFlags, IrqAction, IrqData, ProtocolError, SetIrqs
from server.dma.domains.soft import SoftDomain
from server.dma.memory import GuestMemoryMap
from server.fds import ReceivedFds
from server.session import Session
from server.work_queue import WorkQueue
from tests.fds import open_fds
from tests.server.register_device import BAR0, BAR1, BAR2, MSIX, PAGE, RegisterDevice

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def device() -> RegisterDevice:
    return RegisterDevice()


@pytest.fixture
def session(device: RegisterDevice, log: FakeLog) -> Iterator[Session]:
    work = WorkQueue(lambda _request: None, log)
    session = Session(device, GuestMemoryMap(log, SoftDomain()), work, log)
    yield session
    session.close()


@pytest.mark.parametrize(
    ("region", "offset", "count", "code"),
    [
        (9, 0, 4, errno.EINVAL),
        (2**32 - 1, 0, 4, errno.EINVAL),
        (BAR0, PAGE - 3, 4, errno.EINVAL),
        (BAR0, 2**64 - 4, 4, errno.EINVAL),
        (5, 0, 1, errno.EINVAL),
        (BAR2, 0, 4, errno.EPERM),
    ],
)
def test_a_read_that_cannot_be_never_reaches_the_device(
    session: Session, device: RegisterDevice, region: int, offset: int, count: int, code: int
) -> None:
    device.broken.add("region_read")
    with pytest.raises(ProtocolError) as error:
        session.region_read(region, offset, count)
    assert error.value.errno == code


def test_a_write_to_what_is_read_only_never_reaches_the_device(
    session: Session, device: RegisterDevice
) -> None:
    device.broken.add("region_write")
    with pytest.raises(ProtocolError) as error:
        session.region_write(BAR1, 0, memoryview(b"data"))
    assert error.value.errno == errno.EPERM


def test_a_fault_of_the_device_is_an_input_output_error_with_a_traceback(
    session: Session, log: FakeLog
) -> None:
    error = RuntimeError("a fault")
    assert session.failed("REGION_READ", error) == errno.EIO
    assert log.events == [("warning", "device_fault", {"where": "REGION_READ", "exc_info": error})]


def test_memory_that_is_not_shared_is_pointed_out_once_with_the_fix(session: Session, log: FakeLog) -> None:
    session.dma_map(DmaMap(0, PAGE, DmaMapFlags.READ), ReceivedFds())
    assert log.events == []
    for page in (1, 2):
        session.dma_map(DmaMap(page * PAGE, PAGE, READ_WRITE), ReceivedFds())
    ((level, event, fields),) = log.events
    assert (level, event) == ("warning", "memory_not_shared")
    assert "share=on" in str(fields["fix"])


def test_closing_gives_everything_back_even_if_the_device_breaks(
    device: RegisterDevice, log: FakeLog
) -> None:
    before = open_fds()
    session = Session(device, GuestMemoryMap(log, SoftDomain()), WorkQueue(lambda _request: None, log), log)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    session.dma_map(DmaMap(0, PAGE, READ_WRITE), ReceivedFds([fd]))
    events = ReceivedFds([os.eventfd(0)])
    session.set_irqs(SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), events)
    told: list[PinnedPages] = []
    pins = session.memory.pin_pages([GuestRange(0, PAGE)], Prot.READ, told.append)
    device.broken.add("disconnect")
    session.close()
    assert open_fds() == before
    assert told == [pins]
    assert pins.revoked
    assert ("warning", "device_fault") in [(level, event) for level, event, _ in log.events]
