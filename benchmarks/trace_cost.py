"""What recording costs: page flips, redraws and cursor moves per second in a guest, with ``--trace`` and without.

Two virtual GPUs are in the same guest at the same time, each with a server of its own, one of which records; they are
measured in turn by the same program, so that the machine's moods meet both. Needs what benchmarks.guest_rates needs.

usage: python -m benchmarks.trace_cost [--rounds N] [--seconds S] [--mode WIDTHxHEIGHT] [--blob on|off]
       [--transport native|libvfio-user]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from benchmarks.guest_rates import RATES, build_program
from server.guest.accel import choose_accel
from server.guest.child import started
from server.guest.initramfs import GuestImage
from server.guest.kernel import find_kernel
from server.guest.machine import Machine
from server.guest.programs import find_programs
from server.guest.qemu import find_qemu
from server.guest.run import booted
from server.qemu.client import vfio_user_pci

PLAIN, TRACED = "plain", "traced"
SLOTS = {PLAIN: 3, TRACED: 4}

Rates = dict[str, dict[str, list[float]]]


def trace_size(folder: Path) -> int:
    """Bytes of all files of the trace."""
    return sum(path.stat().st_size for path in folder.glob("trace.pcapng*"))


async def measure(arguments: argparse.Namespace) -> tuple[Rates, int]:
    """Boot one guest with both devices, and measure them in turn; also the bytes that were recorded."""
    qemu, kernel = find_qemu(print), find_kernel(print)
    width, height = map(int, arguments.mode.split("x"))
    results: Rates = {PLAIN: {}, TRACED: {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"bin/drm_rates": build_program(folder)}
        image = GuestImage(kernel, find_programs(print), files=files).write(folder / "initramfs")
        sockets = {who: folder / who for who in SLOTS}
        gpus = tuple(vfio_user_pci(sockets[who], addr=hex(slot)) for who, slot in SLOTS.items())
        machine = Machine(kernel.image, image, choose_accel(qemu, kernel, print), gpus, memory=1024)
        serve = [sys.executable, "-m", "server", "serve", "--log-level", "warning"]
        serve += ["--transport", arguments.transport]
        serve += ["--device", f"virtio-gpu,width={width},height={height},blob={arguments.blob}"]
        trace = folder / "trace.pcapng"
        async with AsyncExitStack() as stack:
            for who, path in sockets.items():
                options = ["--trace", str(trace)] if who == TRACED else []
                command = [*serve, "--socket-path", str(path), *options]
                await stack.enter_async_context(started(who, command))
                while not path.exists():
                    await trio.sleep(0.02)
            guest = await stack.enter_async_context(booted(qemu, machine))
            for _ in range(arguments.rounds):
                for who, slot in SLOTS.items():
                    card = f"$(basename /sys/bus/pci/devices/0000:00:{slot:02x}.0/drm/card*)"
                    command_line = f"drm_rates /dev/dri/{card} {arguments.seconds}"
                    answer = await guest.check(command_line, within=60 + 10 * arguments.seconds)
                    print(who, answer, flush=True)
                    for rate in RATES:
                        results[who].setdefault(rate, []).append(json.loads(answer)[rate])
        size = trace_size(folder)
    return results, size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--mode", default="1024x768")
    parser.add_argument("--blob", choices=("on", "off"), default="off")
    parser.add_argument("--transport", choices=("native", "libvfio-user"), default="native")
    results, size = trio.run(measure, parser.parse_args())
    print(f"{'per second':14} {PLAIN:>10} {TRACED:>10} {'traced/plain, median of pairs':>30}")
    for rate in RATES:
        plain, traced = results[PLAIN][rate], results[TRACED][rate]
        ratio = statistics.median(one / other for one, other in zip(traced, plain, strict=True))
        print(f"{rate:14} {statistics.median(plain):10.0f} {statistics.median(traced):10.0f} {ratio:30.2f}")
    print(f"the trace has {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
