"""One device for client after client."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Never

import pytest
import trio
from trio.testing import MockClock

from devices.display import Frame, ScanoutInfo
from devices.testing import FakeLog
from devices.work import pause
from server.control_protocol import ControlError
from server.dma.domains.soft import SoftDomain
from server.dma.memory import GuestMemoryMap
from server.engine import ATTACH_SECONDS, DeviceBusy, Engine
from server.session import Session
from server.work_queue import MAX_DEFERRED, WorkQueue
from tests.server.register_device import RegisterDevice


@pytest.fixture
def engine() -> Engine:
    return Engine(RegisterDevice())


async def test_the_device_is_one_clients_at_a_time(engine: Engine, autojump_clock: MockClock) -> None:
    await engine.acquire()

    async def other() -> None:
        with pytest.raises(DeviceBusy) as error:
            await engine.acquire()
        assert error.value.errno == errno.EBUSY

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
    assert trio.current_time() == pytest.approx(ATTACH_SECONDS)
    engine.release()


async def test_whoever_waits_gets_the_device_in_order_of_arrival(
    engine: Engine, autojump_clock: MockClock
) -> None:
    served: list[int] = []

    async def client(number: int) -> None:
        await trio.sleep(number / 100)
        await engine.acquire()
        served.append(number)
        await trio.sleep(1)
        engine.release()

    async with trio.open_nursery() as nursery:
        for number in (2, 0, 1, 3):
            nursery.start_soon(client, number)
    assert served == [0, 1, 2, 3]


async def test_a_client_that_gives_up_waiting_keeps_nothing(
    engine: Engine, autojump_clock: MockClock
) -> None:
    await engine.acquire()

    async def impatient() -> None:
        with trio.move_on_after(1):
            await engine.acquire()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
    engine.release()
    await engine.acquire()
    engine.release()


async def test_the_status_says_what_there_is(engine: Engine) -> None:
    status = engine.status()
    assert status["device"] == "registers"
    assert status["client"] is None
    assert status["clients_served"] == 0
    assert status["model"] == {"resets": 0}


class NeverLookedAt:
    """A display of which nobody gets to take a picture."""

    scanouts: Sequence[ScanoutInfo] = ()

    async def capture(self, scanout: int) -> Frame:
        raise AssertionError(scanout)

    def set_mode(self, scanout: int, width: int, height: int, *, connected: bool = True) -> Never:
        raise AssertionError


async def test_a_screenshot_of_a_device_with_too_much_to_do_is_refused_and_the_client_stays(
    autojump_clock: MockClock,
) -> None:
    device, log = RegisterDevice(), FakeLog()
    device.screens = NeverLookedAt()
    work = WorkQueue(lambda _request: None, log)
    session = Session(device, GuestMemoryMap(log, SoftDomain()), work, log)
    engine = Engine(device)
    engine.attach(session)
    for _ in range(MAX_DEFERRED):
        session.defer(pause())
    with trio.fail_after(60), pytest.raises(ControlError, match="the device is too busy: try again"):
        await engine.capture(0)
    work.check()
    engine.detach()
    session.close()
