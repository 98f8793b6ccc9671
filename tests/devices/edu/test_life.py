"""What outlives a reset or a client, and what must not."""

from __future__ import annotations

import pytest

from devices.testing import FakeHost
from devices.work import ReadMessage, WriteMessage
from tests.devices.edu.driver import (
    ALL_ONES,
    BUFFER,
    COMMAND,
    COUNT,
    DESTINATION,
    FACTORIAL,
    FROM_EDU,
    INTERRUPT,
    INTERRUPTS,
    LIVENESS,
    RAM,
    SOURCE,
    START,
    STATUS,
    LaterHost,
    buffer_of,
    line_is_up,
    plugged_in,
    read,
    start_dma,
    write,
)


def test_a_transfer_that_outlives_a_reset_fills_no_buffer_and_says_nothing() -> None:
    host = LaterHost(shared=False)
    device = plugged_in(host)
    start_dma(device, RAM, BUFFER, 4, START | INTERRUPT)
    transfer = host.work.pop()
    assert transfer.send(None) == ReadMessage(RAM, 4)
    device.reset()
    plugged_in(host, device=device)
    start_dma(device, BUFFER, 0x2000, 4, START | FROM_EDU)
    with pytest.raises(StopIteration):
        transfer.send(b"late")
    assert (read(device, COMMAND), read(device, INTERRUPTS)) == (START | FROM_EDU, 0)
    assert host.work.pop().send(None) == WriteMessage(0x2000, bytes(4))
    assert host.interrupts == []


def test_work_that_was_deferred_before_a_reset_does_nothing_after_it() -> None:
    host = LaterHost()
    device = plugged_in(host)
    write(device, STATUS, 0x80)
    write(device, FACTORIAL, 5)
    start_dma(device, BUFFER, RAM, 4, START | FROM_EDU | INTERRUPT)
    host.memory.data[RAM : RAM + 4] = b"kept"
    device.reset()
    plugged_in(host, device=device)
    host.run()
    assert [read(device, at) for at in (FACTORIAL, STATUS, INTERRUPTS, COMMAND)] == [0, 0, 0, 0]
    assert host.memory.data[RAM : RAM + 4] == b"kept"
    assert host.interrupts == []


def test_a_transfer_that_had_not_begun_at_a_reset_is_not_taken_for_the_next_one() -> None:
    host = LaterHost(shared=False)
    device = plugged_in(host)
    start_dma(device, RAM, BUFFER, 4, START)
    device.reset()
    plugged_in(host, device=device)
    start_dma(device, 0x2000, BUFFER, 8, START)
    before, after = host.work
    with pytest.raises(StopIteration):
        before.send(None)
    assert read(device, COMMAND) == START
    assert after.send(None) == ReadMessage(0x2000, 8)


def test_a_reset_forgets_everything() -> None:
    device = plugged_in(host := FakeHost())
    host.memory.data[RAM : RAM + 4] = b"data"
    write(device, LIVENESS, 0)
    write(device, STATUS, 0x80)
    write(device, FACTORIAL, 3)
    start_dma(device, RAM, BUFFER, 4, START | INTERRUPT)
    device.reset()
    assert [read(device, at) for at in (LIVENESS, FACTORIAL, STATUS, INTERRUPTS)] == [0, 0, 0, 0]
    assert [read(device, at, 8) for at in (SOURCE, DESTINATION, COUNT, COMMAND)] == [0, 0, 0, 0]
    assert not line_is_up(device)
    plugged_in(host, device=device)
    assert not any(buffer_of(device, host))


def test_the_next_client_finds_the_registers_and_no_work_under_way() -> None:
    host = LaterHost()
    device = plugged_in(host)
    write(device, LIVENESS, 0)
    write(device, FACTORIAL, 5)
    start_dma(device, RAM, BUFFER, 4, START)
    device.disconnect()
    plugged_in(successor := FakeHost(), device=device)
    assert (read(device, LIVENESS), read(device, STATUS), read(device, COMMAND)) == (ALL_ONES, 0, 0)
    for work in host.work:
        host.drive(work)
    assert read(device, FACTORIAL) == 5
    write(device, FACTORIAL, 5)
    assert read(device, FACTORIAL) == 120
    assert successor.interrupts == []
