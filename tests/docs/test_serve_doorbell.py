"""The doorbell as it is served to QEMU: a process, a socket, shared memory and eventfds."""

import mmap
import os
import signal
import struct
import sys
from pathlib import Path

import trio

from protocol import IrqAction, IrqData, PciIrq, PciRegion, SetIrqs
from server.client import VfioUserClient, open_client
from server.guest.child import started

ROOT = Path(__file__).parents[2]
RAM_SIZE = 1 << 20
COPIED = 1


async def ring_and_copy(client: VfioUserClient, ram: mmap.mmap, fd: int) -> None:
    await client.dma_map(0, RAM_SIZE, fd=fd)
    await client.region_write(PciRegion.CONFIG, 4, b"\x06\x00")
    await client.region_write(PciRegion.CONFIG, 0x42, b"\x00\x80")
    await client.region_write(PciRegion.BAR0, 0x00, bytes(4))
    assert await client.region_read(PciRegion.BAR0, 0x04, 4) == b"\x01\x00\x00\x00"
    ram[0x1000:0x1005] = b"hello"
    await client.region_write(PciRegion.BAR0, 0x08, struct.pack("<QQ", 0x1000, 0x3000))
    await client.region_write(PciRegion.BAR0, 0x18, struct.pack("<I", 5))


async def test_a_client_rings_and_has_its_memory_copied(tmp_path: Path) -> None:
    path = tmp_path / "doorbell.sock"
    command = [sys.executable, "-m", "examples.serve_doorbell", str(path)]
    fd, event = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), os.eventfd(0)
    try:
        os.truncate(fd, RAM_SIZE)
        with mmap.mmap(fd, RAM_SIZE) as ram:
            async with started("the doorbell", command, {**os.environ, "PYTHONPATH": str(ROOT)}) as process:
                await process.log.wait_for("listening", within=120)
                async with open_client(path) as client:
                    trigger = SetIrqs(PciIrq.MSIX, COPIED, 1, IrqData.EVENTFD, IrqAction.TRIGGER)
                    await client.set_irqs(trigger, (event,))
                    await ring_and_copy(client, ram, fd)
                    with trio.fail_after(120):
                        await trio.lowlevel.wait_readable(event)
                    assert ram[0x3000:0x3005] == b"hello"
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
                assert not path.exists()
    finally:
        os.close(fd)
        os.close(event)
