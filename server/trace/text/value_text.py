"""Numbers, ranges, bytes and file descriptors in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntFlag
from itertools import groupby

from protocol import DmaMapFlags
from server.trace.fd_facts import FdFacts
from server.trace.text.names import flag_names

SHORT = 8
"""Bytes that are shown as one number."""
SHOWN = 16
"""Bytes of longer data that are shown."""

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
# F_SEAL_* of <linux/fcntl.h>
_SEALS = ("seal", "shrink", "grow", "write", "future_write", "exec")
_US = 1000
_TENTHS_BELOW = 100


def size_text(size: int) -> str:
    """``512 MiB`` for what is a multiple, else ``1000 bytes``."""
    for unit, name in _UNITS:
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return plural(size, "byte")


def plural(number: int, what: str) -> str:
    """``1 vector``, ``2 vectors``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def span(address: int, size: int) -> str:
    """``0x1000-0x1fff (4 KiB)``: the first and the last byte."""
    if size == 0:
        return f"{address:#x} (0 bytes)"
    return f"{address:#x}-{address + size - 1:#x} ({size_text(size)})"


def data_text(data: bytes | memoryview) -> str:
    """As :func:`first_bytes`, and of how many bytes where that does not show."""
    size = len(data)
    if 0 < size <= SHORT:
        return first_bytes(data)
    return f"{first_bytes(data)} ({size_text(size)})".lstrip()


def first_bytes(data: bytes | memoryview) -> str:
    """Up to 8 bytes as a little-endian number of their width; of more, the first 16 in order."""
    size = len(data)
    if size == 0:
        return ""
    if size <= SHORT:
        return f"{int.from_bytes(data, 'little'):#0{2 + 2 * size}x}"
    return data[:SHOWN].hex() + ("..." if size > SHOWN else "")


def flags_text(flags: IntFlag) -> str:
    """``READ|WRITE``."""
    return "|".join(flag_names(flags)) or "none"


def permissions(flags: DmaMapFlags) -> str:
    """``rw``, ``r-``, ``-w`` or ``--``."""
    return ("r" if flags & DmaMapFlags.READ else "-") + ("w" if flags & DmaMapFlags.WRITE else "-")


def fd_text(facts: FdFacts) -> str:
    """``memfd 1:2052 (1 GiB, sealed: shrink grow)``: device and inode, for what has a name of its own."""
    if facts.kind not in ("memfd", "file"):
        return facts.kind
    known = [size_text(facts.size)] if facts.size >= 0 else []
    if facts.seals > 0:
        seals = [name for bit, name in enumerate(_SEALS) if facts.seals >> bit & 1]
        known.append("sealed: " + " ".join(seals))
    return f"{facts.kind} {facts.device}:{facts.inode}" + (f" ({', '.join(known)})" if known else "")


def fds_text(fds: Sequence[FdFacts]) -> str:
    """``2 eventfds, socket``."""
    runs = [(text, len(list(run))) for text, run in groupby(map(fd_text, fds))]
    return ", ".join(text if count == 1 else f"{count} {text}s" for text, count in runs)


def some(texts: Iterable[str], total: int, most: int, between: str) -> str:
    """The first ``most`` of ``total`` texts, and how many more there are."""
    shown = [text for text, _ in zip(texts, range(most), strict=False)]
    if total > most:
        shown.append(f"and {total - most} more")
    return between.join(shown)


def microseconds(nanoseconds: int) -> str:
    """``8.5us``, ``123us``."""
    value = nanoseconds / _US
    return f"{value:.1f}us" if abs(value) < _TENTHS_BELOW else f"{value:.0f}us"
