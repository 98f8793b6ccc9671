"""Page flips, redraws and cursor moves per second in a guest: our virtual GPU against QEMU's own virtio-gpu-pci.

Both devices are in the same guest at the same time, and are measured in turn by the same program, so that the
machine's moods meet both. Needs gcc, a static libc and the headers of libdrm (Debian: gcc libc6-dev libdrm-dev).

usage: python -m benchmarks.guest_rates [--rounds N] [--seconds S] [--mode WIDTHxHEIGHT] [--blob on|off]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from server.guest.accel import choose_accel
from server.guest.child import started
from server.guest.initramfs import GuestImage
from server.guest.kernel import find_kernel
from server.guest.machine import Machine, own_virtio_gpu
from server.guest.programs import find_programs
from server.guest.qemu import find_qemu
from server.guest.run import booted
from server.qemu.client import vfio_user_pci

OWN_SLOT, OUR_SLOT = 3, 4
RATES = ("flips", "redraws", "cursor_moves")


def build_program(folder: Path) -> bytes:
    """Compile the guest's program."""
    source = Path(__file__).parent / "guest" / "drm_rates.c"
    flags = subprocess.run(["pkg-config", "--cflags", "libdrm"], check=True, capture_output=True, text=True)
    program = folder / "drm_rates"
    command = ["gcc", "-O2", "-static", *flags.stdout.split(), "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    return program.read_bytes()


async def measure(rounds: int, seconds: float, mode: str, blob: str) -> dict[str, dict[str, list[float]]]:
    """Boot one guest with both devices, and measure them in turn."""
    qemu, kernel = find_qemu(print), find_kernel(print)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"bin/drm_rates": build_program(folder)}
        image = GuestImage(kernel, find_programs(print), files=files).write(folder / "initramfs")
        listening = folder / "device.sock"
        width, height = map(int, mode.split("x"))
        device = f"virtio-gpu,width={width},height={height},blob={blob}"
        machine = Machine(
            kernel.image,
            image,
            choose_accel(qemu, kernel, print),
            (
                own_virtio_gpu(xres=width, yres=height, addr=hex(OWN_SLOT)),
                vfio_user_pci(listening, addr=hex(OUR_SLOT)),
            ),
            memory=1024,
        )
        serve = [sys.executable, "-m", "server", "serve", "--socket-path", str(listening)]
        options = ["--device", device, "--log-level", "warning"]
        results: dict[str, dict[str, list[float]]] = {"own": {}, "ours": {}}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(started("the server", [*serve, *options]))
            while not listening.exists():
                await trio.sleep(0.02)
            guest = await stack.enter_async_context(booted(qemu, machine))
            for _ in range(rounds):
                for who, slot in (("own", OWN_SLOT), ("ours", OUR_SLOT)):
                    card = f"$(basename /sys/bus/pci/devices/0000:00:{slot:02x}.0/drm/card*)"
                    command = f"drm_rates /dev/dri/{card} {seconds}"
                    answer = await guest.check(command, within=60 + 10 * seconds)
                    print(who, answer, flush=True)
                    for rate in RATES:
                        results[who].setdefault(rate, []).append(json.loads(answer)[rate])
        return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--mode", default="1024x768")
    parser.add_argument("--blob", choices=("on", "off"), default="off")
    arguments = parser.parse_args()
    results = trio.run(measure, arguments.rounds, arguments.seconds, arguments.mode, arguments.blob)
    print(
        f"{'per second':14} {'QEMU':>10} {'ours':>10} {'ours/QEMU, median of pairs':>28}   ({os.cpu_count()} CPUs)"
    )
    for rate in RATES:
        own, ours = results["own"][rate], results["ours"][rate]
        ratio = statistics.median(our / their for our, their in zip(ours, own, strict=True))
        print(f"{rate:14} {statistics.median(own):10.0f} {statistics.median(ours):10.0f} {ratio:28.2f}")


if __name__ == "__main__":
    main()
