"""QEMU, a recording proxy in a process of its own, and two servers: our virtual GPU, and a sample of libvfio-user."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from devices.display import Frame
from protocol import Command, PciIrq, PciRegion, RegionRead, RegionWrite, decode_request
from protocol.trace import Event, Interrupt
from server.guest.cache import cache_dir
from server.guest.child import Child, started
from server.guest.run import Guest
from server.guest.screen import has_colour_bars, settled
from server.instances.state import listening_paths
from server.qemu.client import vfio_user_pci
from server.screenshot import compose
from server.trace.reader import Traced, TracedEvents, TracedMessage, TraceReader
from tests.guest.support import GuestParts
from tests.guest.test_virtual_gpu import SMPTE_TOP, top_bars
from tests.guest.virtual_gpu import (
    MODE,
    PICTURE_SECONDS,
    POLL_SECONDS,
    START_SECONDS,
    Server,
    serving,
)

pytestmark = pytest.mark.guest

CONNECTOR = re.compile(r"^(\d+)\s+\d+\s+connected", re.MULTILINE)
GPIO_SLOT = 5
BAR2 = PciRegion.BAR2


@dataclass(frozen=True)
class Proxy:
    """``vgpud trace record`` in a process of its own."""

    process: Child
    path: Path
    trace: Path

    def recorded(self) -> list[Traced]:
        with TraceReader(self.trace) as reader:
            return list(reader)


@asynccontextmanager
async def listening(name: str, command: list[str], path: Path) -> AsyncIterator[Child]:
    """Run ``command``, which listens at ``path``."""
    async with started(name, command) as process:
        with trio.fail_after(START_SECONDS):
            while str(path) not in listening_paths():
                assert not process.log.ended, process.log.tail
                await trio.sleep(POLL_SECONDS)
        yield process


@asynccontextmanager
async def recording(folder: Path, server: Path, *options: str) -> AsyncIterator[Proxy]:
    """Record what passes between ``server`` and its first client."""
    path, trace = folder / f"{server.stem}-proxy.sock", folder / f"{server.stem}.pcapng"
    command = [sys.executable, "-m", "server", "trace", "record", "--once", *options]
    command += ["--listen", str(path), "--connect", str(server), str(trace)]
    async with listening("proxy", command, path) as process:
        yield Proxy(process, path, trace)


@asynccontextmanager
async def gpio_server(folder: Path) -> AsyncIterator[Path]:
    """A PCI device of libvfio-user's: 494f:0dc8, whose BAR2 counts how often it was read three times."""
    program = cache_dir() / "libvfio-user" / "bin" / "gpio-pci-idio-16"
    assert program.exists(), "libvfio-user is not there: run 'make libvfio-user' first"
    path = folder / "gpio.sock"
    async with listening("gpio", [str(program), str(path)], path):
        yield path


async def draw(guest: Guest, server: Server, slot: int) -> Frame:
    """Have modetest draw on the GPU in ``slot``, and return what is then on its virtual screen."""
    modetest = f"modetest -M virtio_gpu -D pci:0000:00:{slot:02}.0"
    connector = CONNECTOR.findall(await guest.check(f"{modetest} -c"))[0]
    await guest.check(f"sleep 1000 | {modetest} -s {connector}:{MODE} >/tmp/log-{slot} 2>&1 &")
    return await settled(server.control, has_colour_bars, PICTURE_SECONDS)


async def use_gpio(guest: Guest) -> list[str]:
    """Look at the sample's device, and use its BAR2; what came of it."""
    device = f"/sys/bus/pci/devices/0000:00:{GPIO_SLOT:02}.0"
    identity = await guest.check(f"cat {device}/vendor {device}/device; echo 1 >{device}/enable")
    read = f"dd if={device}/resource2 bs=1 count=1 2>/dev/null | od -An -tx1"
    counts = await guest.check(f"for i in 1 2 3 4 5 6 7; do {read}; done")
    await guest.check(f"printf '\\252' | dd of={device}/resource2 bs=1 count=1 conv=notrunc 2>/dev/null")
    return [*identity.split(), *counts.split()]


def accesses(proxy: Proxy, command: Command, region: int) -> list[RegionRead | RegionWrite]:
    """What the trace has of the client's accesses to a region."""
    requests = [
        decode_request(one.header, one.payload)
        for one in proxy.recorded()
        if isinstance(one, TracedMessage) and one.inbound and one.header.command == command
    ]
    return [one for one in requests if isinstance(one, (RegionRead, RegionWrite)) and one.region == region]


def commands(proxy: Proxy) -> set[int]:
    return {one.header.command for one in proxy.recorded() if isinstance(one, TracedMessage)}


def raised(proxy: Proxy) -> set[Event]:
    return {event for one in proxy.recorded() if isinstance(one, TracedEvents) for event in one.events}


@pytest.mark.parametrize("options", [(), ("--full",)], ids=["plain", "full"])
async def test_a_guest_draws_through_the_proxy_what_it_draws_without_and_uses_somebody_elses_device(
    parts: GuestParts, tmp_path: Path, options: tuple[str, ...]
) -> None:
    device = "virtio-gpu,width=1024,height=768"
    async with (
        serving(tmp_path, device=device, name="direct") as direct,
        serving(tmp_path, device=device) as server,
        gpio_server(tmp_path) as gpio,
        recording(tmp_path, server.device, *options) as proxy,
        recording(tmp_path, gpio, *options) as gpio_proxy,
    ):
        async with parts.boot(
            vfio_user_pci(gpio_proxy.path, addr=hex(GPIO_SLOT)),
            vfio_user_pci(proxy.path, addr="0x6"),
            direct.gpu(addr="0x7"),
        ) as guest:
            assert await use_gpio(guest) == ["0x494f", "0x0dc8", "00", "00", "00", "01", "01", "01", "02"]
            through, without = await draw(guest, server, 6), await draw(guest, direct, 7)
            assert top_bars(through) == SMPTE_TOP
            assert compose(through).tobytes() == compose(without).tobytes()
            memory = (await server.status())["client"]["memory"]
            assert bool(memory["files"]) == (not options)
            assert bool(memory["messages"]) == bool(options)
        with trio.fail_after(START_SECONDS):  # QEMU is gone
            assert (await proxy.process.wait(), await gpio_proxy.process.wait()) == (0, 0)
    assert len(accesses(gpio_proxy, Command.REGION_READ, BAR2)) == 7
    (write,) = accesses(gpio_proxy, Command.REGION_WRITE, BAR2)
    assert isinstance(write, RegionWrite)
    assert (write.offset, write.data) == (0, b"\xaa")
    dma = commands(proxy) & {Command.DMA_READ, Command.DMA_WRITE}
    assert dma == ({Command.DMA_READ, Command.DMA_WRITE} if options else set())
    vectors = {
        event.vector for event in raised(proxy) if isinstance(event, Interrupt) and event.index == PciIrq.MSIX
    }
    assert bool(vectors) == bool(options)
