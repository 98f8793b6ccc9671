"""Devices that raise, wherever they can, and clients that make the log long: the server goes on."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from structlog.typing import EventDict

from protocol import DeviceReset, RegionRead, RegionWrite
from server.log import REPEATS
from tests.server.register_device import BAR0, CONFIG, DeviceBroken, RegisterDevice
from tests.server.running import Server
from tests.server.transports.raw import greeted_client, raw_client
from tests.server.transports.test_handshake import assert_served


def faults(log: list[EventDict]) -> list[str]:
    return [event["where"] for event in log if event["event"] == "device_fault"]


async def test_a_device_that_fails_to_connect_costs_its_client_the_connection(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    device.broken.add("connect")
    async with raw_client(server.path) as client:
        with pytest.raises(ConnectionResetError):
            await client.say_version()
    device.broken.clear()
    await assert_served(server)
    assert faults(log) == ["connection"]


async def test_a_device_that_fails_to_disconnect_does_not_keep_the_next_client_out(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    device.broken.add("disconnect")
    for _ in range(3):
        await assert_served(server)
    assert faults(log)[:2] == ["disconnect", "disconnect"]


async def test_deferred_work_that_raises_is_a_line_in_the_log(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    async def work() -> None:
        raise DeviceBroken("work")

    device.on_write[0] = lambda _: device.attached.defer(work())
    async with greeted_client(server.path) as client:
        assert not (await client.ask(RegionWrite(0, BAR0, b"go"))).header.is_error
        assert not (await client.ask(RegionRead(0, CONFIG, 4))).header.is_error
    assert faults(log) == ["deferred work"]


@pytest.mark.parametrize(
    "answer",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: data * 5000, lambda _: b""],
    ids=["short", "long", "very long", "nothing"],
)
async def test_a_device_that_reads_another_length_is_at_fault(
    server: Server, device: RegisterDevice, log: list[EventDict], answer: Callable[[bytes], bytes]
) -> None:
    async with greeted_client(server.path) as client:
        device.answer = answer
        assert await client.refusal(RegionRead(0, BAR0, 4)) == errno.EIO
        device.answer = lambda data: data
        assert not (await client.ask(RegionRead(0, BAR0, 4))).header.is_error
    assert faults(log) == ["REGION_READ"]


@pytest.mark.parametrize(
    "error", [OSError("no errno"), OSError(), KeyError(3), MemoryError(), RecursionError()]
)
async def test_whatever_a_device_raises_is_an_input_output_error(
    server: Server, device: RegisterDevice, error: Exception
) -> None:
    def fail(_data: bytes) -> None:
        raise error

    device.on_write[0] = fail
    async with greeted_client(server.path) as client:
        assert await client.refusal(RegionWrite(0, BAR0, b"1234")) == errno.EIO
        assert not (await client.ask(DeviceReset())).header.is_error


async def test_interrupts_that_do_not_exist_are_a_fault_of_the_device(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    device.on_write[0] = lambda _: device.attached.trigger(0, 77)
    async with greeted_client(server.path) as client:
        assert await client.refusal(RegionWrite(0, BAR0, b"1234")) == errno.EIO
    assert faults(log) == ["REGION_WRITE"]


async def test_a_client_cannot_flood_the_log(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    device.broken.add("reset")
    async with greeted_client(server.path) as client:
        for _ in range(REPEATS * 3):
            assert await client.refusal(RegionRead(0, 99, 4)) == errno.EINVAL
            assert await client.refusal(DeviceReset()) == errno.EIO
    for name in ("request_refused", "device_fault"):
        levels = [event["log_level"] for event in log if event["event"] == name]
        assert len([level for level in levels if level != "debug"]) == REPEATS
        assert len(levels) == REPEATS * 3


async def test_the_next_client_is_heard_again(server: Server, log: list[EventDict]) -> None:
    for _ in range(2):
        async with greeted_client(server.path) as client:
            for _ in range(REPEATS + 1):
                await client.refusal(RegionRead(0, 99, 4))
    levels = [event["log_level"] for event in log if event["event"] == "request_refused"]
    assert levels == (["info"] * REPEATS + ["debug"]) * 2
