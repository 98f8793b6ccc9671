"""That the comparison with libvfio-user.h leaves nothing out: what is added to the binding has to be added there."""

from __future__ import annotations

import ctypes
import enum
import itertools
from pathlib import Path
from typing import Any

import pytest

from server.libvfio_user import constants, library
from server.libvfio_user.library import SIGNATURES, Generation
from tests.server.libvfio_user.test_header import C_TYPES, CALLBACKS, PREFIXES, STRUCTURES, evaluate

SCALARS = {"PCI_HEADER_TYPE_NORMAL", "loff_t"}
"""What is neither an enumeration, a structure nor a callback, and has a line of its own in test_header.py."""
IN_C: dict[Any, tuple[str, ...]] = {
    **{kind: (name,) for kind, name in C_TYPES.items() if name.endswith("_t *") and "cb" in name},
    constants.LogMessage: ("vfu_log_fn_t *",),
    ctypes.c_int: ("int", "unsigned int"),  # gcc's enumerations are unsigned, and are passed alike
    ctypes.c_uint32: ("uint32_t",),
    ctypes.c_uint64: ("uint64_t",),
    ctypes.c_size_t: ("size_t",),
    ctypes.c_char_p: ("const char *",),
    ctypes.c_void_p: ("vfu_ctx_t *", "void *"),
    ctypes.POINTER(constants.Iovec): ("struct iovec *",),
    None: ("void",),
}
"""By the type in the binding: what it may stand for in C."""


def defined() -> dict[str, Any]:
    """The public names of constants.py that it did not import."""
    imported = {ctypes, enum.IntEnum, enum.IntFlag}
    return {
        name: value
        for name, value in vars(constants).items()
        if not name.startswith("_") and name != "annotations" and not any(value is one for one in imported)
    }


def test_every_name_of_the_constants_is_compared() -> None:
    compared = {value.__name__ for value in (*PREFIXES, *STRUCTURES)} | SCALARS
    compared |= {name for name, value in defined().items() if any(value is one for one in CALLBACKS.values())}
    assert set(defined()) == compared - {"PciRegion", "PciIrq"}  # which are protocol's


def test_no_member_of_an_enumeration_hides_behind_another_of_its_value() -> None:
    for kind in PREFIXES:
        assert len(kind.__members__) == len(list(kind)), kind


def prototypes(result: Any, arguments: tuple[Any, ...]) -> list[str]:
    """Every function type of C that a signature of the binding may stand for."""
    return [
        f"{returned} (*)({', '.join(taken)})"
        for returned in IN_C[result]
        for taken in itertools.product(*(IN_C[argument] for argument in arguments))
    ]


def same_type(name: str, prototype: str) -> str:
    return f"__builtin_types_compatible_p(__typeof__(&{name}), {prototype})"


@pytest.mark.parametrize("name", [*SIGNATURES, "vfu_setup_device_dma"])
def test_every_signature_is_one_that_the_header_agrees_with(tmp_path: Path, name: str) -> None:
    signature = SIGNATURES.get(name, (ctypes.c_int, Generation.OLDER.value))
    answers = evaluate(tmp_path, [same_type(name, prototype) for prototype in prototypes(*signature)])
    assert sum(answers.values()) == 1


def test_a_signature_with_one_type_changed_is_one_that_the_header_does_not_agree_with(tmp_path: Path) -> None:
    result, arguments = SIGNATURES["vfu_create_ctx"]
    for place, kind in ((1, ctypes.c_int), (2, ctypes.c_uint64), (3, ctypes.c_size_t)):
        changed = (*arguments[:place], kind, *arguments[place + 1 :])
        answers = evaluate(
            tmp_path, [same_type("vfu_create_ctx", prototype) for prototype in prototypes(result, changed)]
        )
        assert sum(answers.values()) == 0


def test_every_function_of_the_table_has_a_method_with_a_type() -> None:
    methods = {name for name in library.Library.__annotations__ if name != "path"}
    assert methods == {name.removeprefix("vfu_") for name in SIGNATURES}
