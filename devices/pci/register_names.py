"""Names of registers, for people who read traces and logs; nothing here is on the way of an access."""

from __future__ import annotations

from collections.abc import Callable, Iterable

RegisterName = Callable[[int], str | None]
"""An offset in a structure, to the name of what is there; None where nothing with a name is."""


def name_in(name: str, offset: int, register_name: RegisterName | None = None) -> str | None:
    """The name of what is at ``offset`` of a structure that is called ``name``, or nothing if that is empty.

    ``NAME.REGISTER`` where ``register_name`` knows a register there; ``NAME``, or ``NAME+2``, where it does not.
    """
    register = None if register_name is None else register_name(offset)
    if register is None:
        return (f"{name}+{offset}" if offset else name) if name else None
    return f"{name}.{register}" if name else register


def structure_names(fields: Iterable[tuple[str, int]]) -> RegisterName:
    """The names of a structure's fields: each has a name, empty for reserved bytes, and a width in bytes."""
    names = [name_in(name, byte) for name, width in fields for byte in range(width)]

    def register_name(offset: int) -> str | None:
        return names[offset] if 0 <= offset < len(names) else None

    return register_name


def array_names(name: str, size: int, register_name: RegisterName | None = None) -> RegisterName:
    """``NAME[2].REGISTER`` for an array without an end, of structures of ``size`` bytes."""
    return lambda offset: name_in(f"{name}[{offset // size}]", offset % size, register_name)


config_register_name = structure_names(
    (
        ("vendor_id", 2),
        ("device_id", 2),
        ("command", 2),
        ("status", 2),
        ("revision_id", 1),
        ("class_code", 3),
        ("cache_line_size", 1),
        ("latency_timer", 1),
        ("header_type", 1),
        ("bist", 1),
        *((f"bar{index}", 4) for index in range(6)),
        ("cardbus_cis", 4),
        ("subsystem_vendor_id", 2),
        ("subsystem_id", 2),
        ("rom_base", 4),
        ("capabilities", 1),
        ("", 7),
        ("interrupt_line", 1),
        ("interrupt_pin", 1),
        ("min_gnt", 1),
        ("max_lat", 1),
    )
)
"""Names in the type 0 header of any function's configuration space (PCI Local Bus 3.0, figure 6-1)."""
