"""Names for the numbers in messages: commands, errnos, regions, registers, interrupts."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntFlag
from functools import lru_cache

from devices.models import MODELS
from devices.pci.register_names import config_register_name
from devices.registry import OptionError, create_device
from protocol import Command, PciIrq, PciRegion

_REGISTERS_KEPT = 4096
_REGIONS = {region.value: region.name for region in PciRegion}
_IRQS = {irq.value: irq.name for irq in PciIrq}
_COMMANDS = {command.value: command.name for command in Command}
# Where an errno has two names, the one that is not the network's or System V's.
_ERRNOS = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK"}

RegisterOf = Callable[[int, int], str | None]


class Names:
    """Names of regions, registers and interrupts of one session's device.

    ``device`` is what :class:`protocol.trace.SessionInfo` says. Where it makes no device, only the registers that every
    PCI function has are known.
    """

    def __init__(self, device: str = "") -> None:
        self.register = lru_cache(_REGISTERS_KEPT)(_registers_of(device))
        """A region's index and an offset, to the name of the register there, or None."""

    @staticmethod
    def region(index: int) -> str:
        """``BAR4``, or ``region 12`` for those that only the device knows."""
        return _REGIONS.get(index) or f"region {index}"

    @staticmethod
    def irq(index: int) -> str:
        """``MSIX``, or ``irq 12``."""
        return _IRQS.get(index) or f"irq {index}"


def command_name(command: int) -> str:
    """``REGION_READ``, or ``command 14``."""
    return _COMMANDS.get(command) or f"command {command}"


def errno_name(number: int) -> str:
    """``EINVAL``, or ``errno 12345``; 0 is what a peer sends that does not say why."""
    return _ERRNOS.get(number) or f"errno {number}"


def flag_names(flags: IntFlag) -> list[str]:
    """The names of the bits that are set, and in hexadecimal those that have none."""
    named = [member for member in type(flags) if member & flags]
    rest = int(flags) & ~sum(member.value for member in named)
    return [str(member.name) for member in named] + ([f"{rest:#x}"] if rest else [])


def printable(text: str) -> str:
    """``text`` as it may be shown on a terminal: strings in a trace are a stranger's."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def _registers_of(device: str) -> RegisterOf:
    try:
        model = create_device(MODELS, device)
    except OptionError:
        return _config_register
    model.close()  # its registers have their names all the same
    return model.register_name


def _config_register(index: int, offset: int) -> str | None:
    return config_register_name(offset) if index == PciRegion.CONFIG else None
