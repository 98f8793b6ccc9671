"""One device for client after client."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock

from server.engine import ATTACH_SECONDS, DeviceBusy, Engine
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
