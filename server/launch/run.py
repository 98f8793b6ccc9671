"""``vgpud run``: from its command line to QEMU's."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace

from server.exit_status import fail
from server.launch.boot_rom import boot_rom, has_rom
from server.launch.checks import check_command, check_program
from server.launch.errors import LaunchError
from server.launch.gpu_devices import GpuAttachment, with_gpus
from server.launch.gpu_files import counted, numbered
from server.launch.migration_guard import knows_image, with_migration_guard
from server.launch.qemu_options import QemuCommand, parse_command
from server.launch.server_process import Gpu
from server.launch.shared_memory import with_shared_memory
from server.launch.signals import PASSED_ON, held_back
from server.launch.supervisor import Launch, supervise
from server.qemu.names import GPU_ID


def run_guest(arguments: argparse.Namespace) -> int:
    """Run QEMU with its virtual GPUs, or print the command that would; returns the exit status."""
    try:
        command = parse_command(_without_separator(arguments.command))
        check_command(command, root_ports=arguments.root_port)
        check_program(command)
        wanted = gpus(arguments)
        launch = Launch(_prepared(command), tuple(_with_roms(wanted, command)), arguments.root_port)
        if arguments.dry_run:
            _check_gpus(wanted)
            sys.stdout.write(shlex.join(command_to_read(launch).words) + "\n")
            return 0
        with held_back(PASSED_ON) as signals:
            return supervise(launch, signals)
    except LaunchError as error:
        return fail(error)


def gpus(arguments: argparse.Namespace) -> list[Gpu]:
    """The GPUs that the options ask for; where they are several, each has files of its own, with its number."""
    devices = arguments.gpu or ["virtio-gpu"]
    count = len(devices)
    return [
        Gpu(
            f"{GPU_ID}{number}",
            device,
            arguments.transport,
            control=numbered(arguments.control, number, count),
            trace=numbered(arguments.trace, number, count),
            log=numbered(arguments.log, number, count),
            metrics=counted(arguments.metrics, number, count),
            unpluggable=arguments.root_port,
        )
        for number, device in enumerate(devices)
    ]


def command_to_read(launch: Launch) -> QemuCommand:
    """QEMU's command line, for servers that listen at ``/tmp/vgpud0.sock`` and so on."""
    sockets = [
        GpuAttachment(f"/tmp/{gpu.name}.sock", gpu.rom)  # noqa: S108 - where the reader puts them
        for gpu in launch.gpus
    ]
    return with_gpus(launch.command, sockets, root_ports=launch.root_ports)


def _check_gpus(wanted: list[Gpu]) -> None:
    """Refuse the devices that a server would refuse. Raises LaunchError."""
    from devices.models import MODELS  # noqa: PLC0415 - all else that needs the models is in another process
    from devices.registry import OptionError, create_device  # noqa: PLC0415

    for gpu in wanted:
        try:
            create_device(MODELS, gpu.device).close()
        except OptionError as error:
            raise LaunchError(f"--gpu {gpu.device}: {error}") from error


def _with_roms(wanted: list[Gpu], command: QemuCommand) -> Iterator[Gpu]:
    for gpu in wanted:
        rom = boot_rom(command, gpu.device)
        if rom is not None and not has_rom(command, rom):
            sys.stderr.write(
                f"vgpud: this QEMU has no {rom}: the screen of {gpu.name} is empty until the guest's driver is up\n"
            )
            rom = None
        yield replace(gpu, rom=rom)


def _without_separator(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words


def _prepared(command: QemuCommand) -> QemuCommand:
    """The command with all that it needs, but for the GPUs, which are made last."""
    shared = with_shared_memory(command)
    if knows_image(command.program):
        return with_migration_guard(shared)
    sys.stderr.write(
        "vgpud: this QEMU knows no VDI images; do not migrate the guest: nothing will refuse it\n"
    )
    return shared
