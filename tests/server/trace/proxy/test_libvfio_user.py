"""A server written in C on libvfio-user behind the proxy: its sample ``server``.

A write of a time to its BAR0 makes it raise INTx then, fill the first page of DMA memory with the letter A, and read
that back, by message. A mismatch ends it.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
import trio

from protocol import Command, DmaReadReply, IrqAction, IrqData, RegionFlags, SetIrqs
from protocol.trace import Interrupt
from server.client import open_client
from server.guest.cache import cache_dir
from server.guest.child import started
from server.instances.state import listening_paths
from tests.server.register_device import BAR0, BAR1, CONFIG, INTX, PAGE
from tests.server.trace.proxy.proxies import FROM_CLIENT, Proxy, running_proxy

START_SECONDS = 120.0
POLL_SECONDS = 0.01
TIMER_SECONDS = 3
"""The sample takes whole seconds; a time that is over when it gets there would set no timer."""


class FileMemory:
    """A client's memory, which it reaches by its own fd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, address: int, count: int) -> bytes:
        return os.pread(self._fd, count, address)

    def write(self, address: int, data: bytes) -> None:
        os.pwrite(self._fd, data, address)


@pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
async def test_its_registers_interrupts_and_dma_messages_pass(tmp_path: Path, full: bool) -> None:
    program, path = cache_dir() / "libvfio-user" / "bin" / "server", tmp_path / "server"
    assert program.exists(), "libvfio-user is not there: run 'make libvfio-user' first"
    memfd, eventfd = os.memfd_create("guest"), os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(memfd, PAGE)
    async with started("server", [str(program), "-v", str(path)]) as server:
        with trio.fail_after(START_SECONDS):
            while str(path) not in listening_paths():
                assert not server.log.ended, server.log.tail
                await trio.sleep(POLL_SECONDS)
        async with (
            running_proxy(path, tmp_path, full=full) as proxy,
            open_client(proxy.path, memory=None if full else FileMemory(memfd)) as client,
        ):
            with trio.fail_after(START_SECONDS):
                assert (await client.region_read(CONFIG, 0, 4)).hex() == "addeefbe"
                info, fds = await client.get_region_info(BAR1)
                assert bool(info.flags & RegionFlags.MMAP) == (not full)
                assert (len(fds) > 0) == (not full)
                fds.close()
                await client.dma_map(0, PAGE, fd=memfd)
                await client.set_irqs(SetIrqs(INTX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), [eventfd])
                await client.region_write(BAR0, 0, struct.pack("=q", int(time.time()) + TIMER_SECONDS))
                await trio.lowlevel.wait_readable(eventfd)
                # Until then the server would take a request for the reply that it waits for.
                while read_back(proxy) != b"A" * PAGE:
                    await trio.sleep(POLL_SECONDS)
                assert (await client.region_read(CONFIG, 0, 4)).hex() == "addeefbe"
    assert os.pread(memfd, PAGE, 0) == b"A" * PAGE
    for fd in (memfd, eventfd):
        os.close(fd)
    assert proxy.events() == ([Interrupt(INTX, 0)] if full else [])


def read_back(proxy: Proxy) -> bytes:
    """What the server has read of the client's memory so far."""
    replies = [one for one in proxy.messages(Command.DMA_READ) if one.direction is FROM_CLIENT]
    return b"".join(DmaReadReply.unpack(one.payload).data for one in replies)
