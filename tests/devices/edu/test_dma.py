"""The DMA engine, as QEMU's docs/specs/edu.rst describes it, and what it does with what cannot be."""

from __future__ import annotations

import pytest

from devices.contract import GuestRange
from devices.edu import Edu
from devices.models import MODELS
from devices.registry import OptionError, create_device
from devices.testing import FakeHost
from tests.devices.edu.driver import (
    BUFFER,
    COMMAND,
    COUNT,
    DESTINATION,
    FROM_EDU,
    INTERRUPT,
    INTERRUPTS,
    INTX,
    RAM,
    SOURCE,
    START,
    LaterHost,
    buffer_of,
    plugged_in,
    read,
    start_dma,
)


def dma_events(host: FakeHost) -> list[str]:
    return [event for _, event, _ in host.log.events]


def test_the_example_of_the_specification_takes_100_bytes_in_and_out_again() -> None:
    device = plugged_in(host := FakeHost())
    host.memory.data[RAM : RAM + 100] = bytes(range(100))
    start_dma(device, RAM, BUFFER, 100, START)
    assert read(device, COMMAND) == 0
    start_dma(device, BUFFER, RAM + 100, 100, START | FROM_EDU)
    assert read(device, COMMAND) == FROM_EDU
    assert host.memory.data[RAM : RAM + 201] == bytes(range(100)) * 2 + b"\0"
    assert host.interrupts == []


def test_a_transfer_may_begin_and_end_anywhere_in_the_buffer() -> None:
    device = plugged_in(host := FakeHost())
    host.memory.data[RAM : RAM + 4096] = b"x" * 4096
    start_dma(device, RAM, BUFFER, 4096, START)
    host.memory.data[RAM] = ord("y")
    start_dma(device, RAM, BUFFER + 4095, 1, START)
    assert buffer_of(device, host) == b"x" * 4095 + b"y"
    start_dma(device, BUFFER + 4094, RAM, 2, START | FROM_EDU)
    assert host.memory.data[RAM : RAM + 3] == b"xyx"


def test_a_transfer_interrupts_with_0x100_where_the_command_asks_for_it() -> None:
    device = plugged_in(host := FakeHost())
    start_dma(device, RAM, BUFFER, 4, START | INTERRUPT)
    assert (read(device, COMMAND), read(device, INTERRUPTS), host.interrupts) == (INTERRUPT, 0x100, [INTX])


def test_while_a_transfer_runs_its_registers_ignore_writes_and_the_command_says_so() -> None:
    host = LaterHost()
    host.memory.data[RAM : RAM + 4] = b"here"
    device = plugged_in(host)
    start_dma(device, RAM, BUFFER, 4, START)
    start_dma(device, 0x2000, BUFFER + 8, 2, START | FROM_EDU | INTERRUPT)
    registers = [read(device, register, 8) for register in (SOURCE, DESTINATION, COUNT, COMMAND)]
    assert registers == [RAM, BUFFER, 4, START]
    assert len(host.work) == 1
    host.run()
    assert (read(device, COMMAND), host.interrupts) == (0, [])
    start_dma(device, BUFFER, 0x2000, 16, START | FROM_EDU)
    host.run()
    assert host.memory.data[0x2000:0x2010] == b"here".ljust(16, b"\0")


def test_a_command_that_does_not_start_anything_is_ignored() -> None:
    device = plugged_in(host := FakeHost())
    start_dma(device, BUFFER, RAM, 4, FROM_EDU | INTERRUPT)
    assert (read(device, COMMAND), host.interrupts) == (0, [])


@pytest.mark.parametrize(
    ("buffer", "count"),
    [
        (BUFFER - 1, 1),
        (BUFFER, 4097),
        (BUFFER + 4096, 1),
        (BUFFER + 4000, 97),
        (0, 4),
        (2**64 - 1, 2),
        (BUFFER, 2**64 - 1),
    ],
)
def test_a_transfer_that_leaves_the_buffer_copies_nothing_and_completes(buffer: int, count: int) -> None:
    device = plugged_in(host := FakeHost())
    host.memory.data[:] = b"x" * len(host.memory.data)
    start_dma(device, RAM, buffer, count, START | INTERRUPT)
    start_dma(device, buffer, RAM, count, START | FROM_EDU | INTERRUPT)
    assert (read(device, COMMAND), read(device, INTERRUPTS)) == (FROM_EDU | INTERRUPT, 0x100)
    assert dma_events(host) == ["dma_refused"] * 2
    assert host.memory.data == b"x" * len(host.memory.data)
    assert not any(buffer_of(device, host))


@pytest.mark.parametrize("command", [START, START | FROM_EDU])
def test_a_transfer_with_memory_that_is_not_there_completes_and_is_logged(command: int) -> None:
    device = plugged_in(host := FakeHost())
    host.memory.holes = [GuestRange(RAM, 8)]
    addresses = (BUFFER, RAM) if command & FROM_EDU else (RAM, BUFFER)
    start_dma(device, *addresses, 16, command | INTERRUPT)
    assert (read(device, COMMAND) & START, read(device, INTERRUPTS)) == (0, 0x100)
    assert dma_events(host) == ["dma_failed"]
    assert not any(buffer_of(device, host))


@pytest.mark.parametrize("command", [START, START | FROM_EDU])
def test_a_function_that_is_not_bus_master_reaches_no_memory(command: int) -> None:
    device = plugged_in(host := FakeHost(), command=2)
    host.memory.data[:] = b"x" * len(host.memory.data)
    addresses = (BUFFER, RAM) if command & FROM_EDU else (RAM, BUFFER)
    start_dma(device, *addresses, 16, command | INTERRUPT)
    assert (read(device, COMMAND) & START, read(device, INTERRUPTS)) == (0, 0x100)
    assert host.memory.data == b"x" * len(host.memory.data)
    plugged_in(host, device=device)
    assert not any(buffer_of(device, host))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("edu", 0x10001000),
        ("edu,dma_mask=0xffff", 0x51000),
        ("edu,dma_mask=4095", RAM),
        ("edu,dma_mask=0xffffffffffffffff", RAM),
    ],
)
def test_address_bits_outside_of_the_dma_mask_are_lost(text: str, address: int) -> None:
    """28 bits unless told otherwise; of 0x10001000 these leave 0x1000."""
    device = create_device(MODELS, text)
    assert isinstance(device, Edu)
    plugged_in(host := FakeHost(), device=device)
    low = 0 if "4095" in text else RAM
    host.memory.data[low : low + 4] = b"low!"
    start_dma(device, address, BUFFER, 4, START)
    start_dma(device, BUFFER, address + 8, 4, START | FROM_EDU)
    assert host.memory.data[low + 8 : low + 12] == b"low!"
    assert dma_events(host) == []


@pytest.mark.parametrize("mask", ["", "wide", "-1", "0x10000000000000000", "1.5"])
def test_a_dma_mask_that_is_none_is_refused(mask: str) -> None:
    with pytest.raises(OptionError, match=r"edu: dma_mask=.*64-bit"):
        create_device(MODELS, f"edu,dma_mask={mask}")


def test_memory_that_is_not_shared_is_reached_by_message() -> None:
    device = plugged_in(host := FakeHost(shared=False))
    host.memory.data[RAM : RAM + 4] = b"abcd"
    start_dma(device, RAM, BUFFER, 4, START)
    start_dma(device, BUFFER, 0x2000, 4, START | FROM_EDU)
    assert host.memory.data[0x2000:0x2004] == b"abcd"
