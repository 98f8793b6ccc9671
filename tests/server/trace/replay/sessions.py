"""Sessions to record and to replay: a device that works on guest memory, and a client that has it work."""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from devices.contract import Device, GuestMemory
from protocol import DmaMapFlags, IrqAction, IrqData, PciIrq, SetIrqs
from protocol.trace import SessionInfo
from server.client import VfioUserClient, open_client
from server.trace.reader import TraceReader
from server.trace.recording import Recording
from server.trace.replay.comparison import Comparison
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.player import ReplayOptions
from server.trace.replay.replay import host, replay
from server.trace.replay.report import Report
from server.trace.ring import TraceRing
from tests.server.register_device import BAR0, MSIX, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS, running_server, with_transport

U64 = struct.Struct("<Q")
DOORBELL, RESULT = 0, 8
"""Registers of BAR0: where to work, and what came of it."""
BASE = 1 << 20
PATIENCE = ReplayOptions(timeout=60.0)
"""For replays that are not to get stuck, however busy the machine is."""
STUCK = ReplayOptions(timeout=0.3)
"""For those that are to get stuck. They take an ``autojump_clock``: its time passes only when nobody has work to do."""

Act = Callable[[VfioUserClient, int], Awaitable[None]]
"""What a client does; the second is the fd of its memory, :data:`PAGE` bytes at :data:`BASE`."""


class Squares(RegisterDevice):
    """Told an address, it reads a number there, shows its square, writes its successor behind it, and interrupts."""

    def __init__(self) -> None:
        super().__init__()
        self.on_write[DOORBELL] = lambda data: self.attached.defer(self.work(*U64.unpack(data)))

    @property
    def memory(self) -> GuestMemory:
        return self.attached.memory

    async def work(self, address: int) -> None:
        (number,) = U64.unpack(await self.memory.read(address, U64.size))
        self.data[BAR0][RESULT : RESULT + U64.size] = U64.pack(number * number & (1 << 64) - 1)
        await self.memory.write(address + U64.size, U64.pack(number + 1))
        self.attached.trigger(MSIX, 0)


@contextmanager
def guest_memory() -> Iterator[int]:
    """A file with memory for a client."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE)
    try:
        yield fd
    finally:
        os.close(fd)


async def square_numbers(client: VfioUserClient, fd: int, count: int = 5) -> None:
    """A guest's life: look at the device, set up memory and interrupts, and have it work."""
    await client.get_info()
    await client.get_irq_info(PciIrq.MSIX)
    with trio.fail_after(60):
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            await client.set_irqs(SetIrqs(PciIrq.MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), [event])
            await client.dma_map(BASE, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE, fd=fd)
            for number in range(count):
                place = 16 * number
                os.pwrite(fd, U64.pack(7 * number + 3), place)
                await client.region_write(BAR0, DOORBELL, U64.pack(BASE + place))
                await trio.lowlevel.wait_readable(event)
                os.eventfd_read(event)
                await client.region_read(BAR0, RESULT, U64.size)
        finally:
            os.close(event)
    await client.dma_unmap(BASE, PAGE)


async def record(
    folder: Path, device: Device, *acts: Act, transport: str = "native", device_text: str = ""
) -> Path:
    """Have a server record one session for each of ``acts``; returns the trace."""
    path = folder / "trace.pcapng"
    ring = TraceRing(path)
    info = SessionInfo("test", device_text, transport, memory=True, interrupts=True)
    try:
        options = with_transport(transport, recording=Recording(ring, info))
        async with running_server(device, options) as server:
            for number, act in enumerate(acts, 1):
                with guest_memory() as fd:
                    async with open_client(server.path) as client:
                        await act(client, fd)
                while server.engine.session is not None or server.engine.clients_served < number:
                    await trio.lowlevel.checkpoint()
    finally:
        ring.close()
        device.close()
    return path


async def replayed(
    trace: Path,
    device: RegisterDevice,
    *,
    transport: str = "native",
    memory: str = "auto",
    comparison: Comparison | None = None,
    options: ReplayOptions = PATIENCE,
    number: int = 1,
) -> Report:
    """Replay a session of ``trace`` to ``device``."""
    try:
        with TraceReader(trace) as reader:
            session = RecordedSession(reader, number)
            hosted = host(device, TRANSPORTS[transport]())
            return await replay(session, hosted, memory=memory, comparison=comparison, options=options)
    finally:
        device.close()
