"""The command line: one subparser per command; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from server.display.command_line import add_display
from server.exit_status import exit_status_of, fail
from server.hotplug.command_line import add_attach, add_detach
from server.instances.command_line import add_instances
from server.instances.control_option import add_control, control_socket
from server.instances.errors import InstanceError
from server.launch.command_line import add_run
from server.libvirt.command_line import add_libvirt_xml
from server.log import FORMATS, LEVELS
from server.trace.command_line import add_trace
from server.trace.ring import DEFAULT_LIMIT
from server.transport_names import AUTO, CHOICES

Handler = Callable[[argparse.Namespace], int]


def _serve(arguments: argparse.Namespace) -> int:
    from server.serve import run_serve  # noqa: PLC0415

    return run_serve(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from server.control_client import status  # noqa: PLC0415
    from server.control_protocol import ControlError  # noqa: PLC0415
    from server.run_async import run_async  # noqa: PLC0415
    from server.status_text import status_lines  # noqa: PLC0415

    try:
        answer = run_async(status, control_socket(arguments))
    except (ControlError, InstanceError) as error:
        return fail(error)
    text = json.dumps(answer, indent=2) if arguments.json else "\n".join(status_lines(answer))
    sys.stdout.write(text + "\n")
    return 0


def _screenshot(arguments: argparse.Namespace) -> int:
    from server.control_client import screenshot  # noqa: PLC0415
    from server.control_protocol import ControlError  # noqa: PLC0415
    from server.run_async import run_async  # noqa: PLC0415

    try:
        frame = run_async(screenshot, control_socket(arguments), arguments.file, arguments.scanout)
    except (ControlError, InstanceError) as error:
        return fail(error)
    sys.stdout.write(f"{arguments.file}: {frame.buffer.width}x{frame.buffer.height}\n")
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    from devices.models import MODELS  # noqa: PLC0415

    if arguments.json:
        listing = [
            {
                "name": model.name,
                "description": model.description,
                "options": [
                    {"name": option.name, "default": option.default, "help": option.help}
                    for option in model.options
                ],
            }
            for model in MODELS
        ]
        sys.stdout.write(json.dumps(listing, indent=2) + "\n")
        return 0
    for model in MODELS:
        sys.stdout.write(f"{model.name}: {model.description}\n")
        for option in model.options:
            setting = f"{option.name}={option.default}"
            sys.stdout.write(f"  {setting:<20} {option.help}\n")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from server.guest.demo import demo_command  # noqa: PLC0415

    return demo_command(arguments.output)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("serve", help="serve a device to vfio-user clients, one after another")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", type=Path, metavar="PATH", help="listen on this UNIX socket")
    where.add_argument("--fd", type=int, metavar="N", help="use this listening UNIX socket")
    parser.add_argument(
        "--device",
        default="virtio-gpu",
        metavar="NAME[,OPTION=VALUE...]",
        help="device model; 'vgpud devices' lists them (default: %(default)s)",
    )
    parser.add_argument(
        "--transport",
        choices=CHOICES,
        default=AUTO,
        help="what speaks vfio-user: this project's own engine, which auto chooses, or libvfio-user "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--once", action="store_true", help="end when the first client has left; else serve one after another"
    )
    _add_dma_options(parser.add_argument_group("guest memory"))
    _add_watching_options(parser)
    parser.add_argument(
        "--print-capabilities", action="store_true", help="print what the device can do as JSON, and exit"
    )
    parser.set_defaults(handler=_serve)


def _add_watching_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", type=Path, metavar="PATH", help="socket for status and screens")
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="serve /metrics to Prometheus at [HOST:]PORT, on the loopback address unless told otherwise, or at "
        "unix:PATH",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="record every session; see 'vgpud trace'")
    parser.add_argument(
        "--trace-limit",
        metavar="SIZE",
        default=DEFAULT_LIMIT,
        help="bytes of the trace at most, in a ring of FILE, FILE.1, FILE.2, FILE.3; or none (default: %(default)s)",
    )
    parser.add_argument("--log-format", choices=FORMATS, default="console", help="default: %(default)s")
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default: %(default)s")


def _add_dma_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dma-domain",
        choices=("soft", "noiommu", "type1"),
        default="soft",
        help="what a DMA address is: a place in this process (soft), in physical memory (noiommu, needs root), "
        "or behind a hardware IOMMU (type1, needs --vfio-group) (default: %(default)s)",
    )
    group.add_argument(
        "--max-pinned",
        metavar="SIZE",
        help="guest memory that one client's device may keep mapped; memlock stands for RLIMIT_MEMLOCK, which is "
        "the default where the memory is locked (default: 4G for soft)",
    )
    group.add_argument(
        "--dma-retain",
        metavar="SIZE",
        default="0",
        help="of that, how much may stay mapped that nothing uses any more, least recently used out first "
        "(default: %(default)s)",
    )
    group.add_argument("--vfio-group", type=int, metavar="N", help="type1: the IOMMU group, /dev/vfio/N")
    group.add_argument(
        "--vfio-container", type=int, metavar="FD", help="type1: the VFIO container of who drives the device"
    )
    group.add_argument(
        "--dma-bits",
        type=int,
        default=64,
        metavar="N",
        help="type1: bits of address that the device can use (default: %(default)s)",
    )


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo", help="boot a stock Linux guest on the virtual GPU and save its screen"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("vgpud-demo.png"),
        metavar="FILE.png",
        help="where the pattern goes, with the console beside it (default: %(default)s)",
    )
    parser.set_defaults(handler=_demo)


class _Parser(argparse.ArgumentParser):
    """Refuses an option that it does not know with the usage of the command at hand, and not that of all commands."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def _parser() -> argparse.ArgumentParser:
    return _Parser(
        prog="vgpud", description="A vfio-user device server that gives QEMU guests a virtual GPU."
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _parser()
    parser.add_argument("--version", action="version", version=f"vgpud {version('vgpud')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_demo(commands)

    screenshot = commands.add_parser("screenshot", help="save what is on a screen of a running server")
    add_control(screenshot)
    screenshot.add_argument("--scanout", type=int, default=0, metavar="N")
    screenshot.add_argument("file", type=Path, metavar="FILE.png")
    screenshot.set_defaults(handler=_screenshot)

    status = commands.add_parser("status", help="show what a running server is doing")
    add_control(status)
    status.add_argument("--json", action="store_true")
    status.set_defaults(handler=_status)

    add_display(commands)
    add_libvirt_xml(commands)
    add_run(commands)
    add_attach(commands)
    add_detach(commands)
    add_instances(commands)
    add_trace(commands)

    devices = commands.add_parser("devices", help="list the device models and their options")
    devices.add_argument("--json", action="store_true")
    devices.set_defaults(handler=_devices)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console script ``vgpud``."""
    return exit_status_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    handler: Handler = arguments.handler
    return handler(arguments)


def serve_main() -> int:
    """``vgpud serve`` as a program of its own, which is what discovery files name; ``vfio-user-gpu``."""
    return main(["serve", *sys.argv[1:]])
