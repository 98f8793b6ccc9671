"""How much memory a machine has: ``-m`` and ``-machine memory.size``, as QEMU reads them."""

from __future__ import annotations

import re
from fractions import Fraction

from server.launch.errors import LaunchError
from server.launch.qemu_options import MACHINE, QemuCommand

DEFAULT = 128 << 20
"""Bytes of memory of every machine type for x86 where nobody says (``default_ram_size`` in ``hw/core/machine.c``)."""
GRANULE = 8192
"""QEMU rounds the size of a machine's memory up to so many bytes (``machine_set_mem`` in ``hw/core/machine.c``)."""

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d*)?)(?P<suffix>[BKMGTPE]?)", re.IGNORECASE | re.ASCII)
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)
_SUFFIXES = "BKMGTPE"


def memory_size(command: QemuCommand) -> int:
    """Bytes of memory of the machine, without what can be plugged. Raises LaunchError for what QEMU would refuse."""
    size = _given(command)
    return -(-size // GRANULE) * GRANULE if size else DEFAULT


def parse_size(text: str) -> int:
    """Bytes: a number, perhaps with a fraction, and a binary suffix; or hexadecimal. Raises ValueError."""
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size")
    shift = 10 * _SUFFIXES.index(match["suffix"].upper() or "B")
    return int(Fraction(match["number"].rstrip(".")) * (1 << shift) + Fraction(1, 2))


def _given(command: QemuCommand) -> int:
    """The size that was asked for, 0 for none; -m counts, wherever it stands."""
    of_memory = command.merged("m", implied="size").get("size")
    of_machine = command.merged(*MACHINE, implied="type").get("memory.size")
    if of_memory is not None:
        text = str(of_memory)
        if size := _parsed("-m", text, _with_suffix(text)):
            return size
    return 0 if of_machine is None else _parsed("-machine memory.size", str(of_machine), str(of_machine))


def _parsed(option: str, text: str, size: str) -> int:
    """Bytes of ``size``, which is what the user's ``text`` stands for. Raises LaunchError."""
    try:
        return parse_size(size)
    except ValueError as error:
        raise LaunchError(f"{option}: {text!r} is no size; write for example 2G") from error


def _with_suffix(text: str) -> str:
    """A number alone is in MiB for -m, and for no other size."""
    return f"{text}M" if "0" <= text[-1:] <= "9" else text
