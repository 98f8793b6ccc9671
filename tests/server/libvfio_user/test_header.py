"""The mirrored constants, structures and prototypes against libvfio-user.h, as the compiler sees it."""

from __future__ import annotations

import ctypes
import enum
import subprocess
from pathlib import Path
from typing import Any

from protocol import PciIrq, PciRegion
from server.libvfio_user import constants
from server.libvfio_user.library import OLDER_ONLY, SIGNATURES, Generation
from tests.server.libvfio_user.compiled import compile_c

PREFIXES = {
    constants.Transport: "VFU_TRANS_{}",
    constants.DeviceType: "VFU_DEV_TYPE_{}",
    constants.ContextFlags: "LIBVFIO_USER_FLAG_{}",
    constants.RegionFlags: "VFU_REGION_FLAG_{}",
    PciRegion: "VFU_PCI_DEV_{}_REGION_IDX",
    PciIrq: "VFU_DEV_{}_IRQ",
    constants.ResetType: "VFU_RESET_{}",
    constants.PciType: "VFU_PCI_TYPE_{}",
    constants.LogLevel: "LOG_{}",
}
RENAMED = {"VFU_PCI_DEV_CONFIG_REGION_IDX": "VFU_PCI_DEV_CFG_REGION_IDX"}
STRUCTURES: dict[Any, tuple[str, dict[str, str]]] = {
    constants.Iovec: ("struct iovec", {"base": "iov_base", "length": "iov_len"}),
    constants.DmaInfo: ("vfu_dma_info_t", {}),
}
C_TYPES = {
    None: "void",
    ctypes.c_int: "int",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_uint64: "uint64_t",
    ctypes.c_size_t: "size_t",
    ctypes.c_ssize_t: "ssize_t",
    ctypes.c_bool: "bool",
    ctypes.c_char_p: "char *",
    ctypes.POINTER(constants.Iovec): "struct iovec *",
    ctypes.POINTER(constants.DmaInfo): "vfu_dma_info_t *",
    constants.RegionAccess: "vfu_region_access_cb_t *",
    constants.DmaRegister: "vfu_dma_register_cb_t *",
    constants.DmaUnregister: "vfu_dma_unregister_cb_t *",
    constants.Quiesce: "vfu_device_quiesce_cb_t *",
    constants.Reset: "vfu_reset_cb_t *",
    constants.LogMessage: "vfu_log_fn_t *",
}
CALLBACKS: dict[str, Any] = {
    "vfu_region_access_cb_t": constants.RegionAccess,
    "vfu_dma_register_cb_t": constants.DmaRegister,
    "vfu_dma_unregister_cb_t": constants.DmaUnregister,
    "vfu_device_quiesce_cb_t": constants.Quiesce,
    "vfu_reset_cb_t": constants.Reset,
    "vfu_log_fn_t": constants.LogMessage,
}
INCLUDES = "#include <errno.h>\n#include <stdbool.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <sys/uio.h>\n"


def evaluate(folder: Path, expressions: list[str]) -> dict[str, int]:
    """What integer expressions of C are."""
    lines = "".join(f'    printf("%lld\\n", (long long)({expression}));\n' for expression in expressions)
    source = folder / "probe.c"
    source.write_text(
        f"{INCLUDES}#include <vfio-user/libvfio-user.h>\nint main(void)\n{{\n{lines}    return 0;\n}}\n"
    )
    program = compile_c(source, folder / "probe")
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return dict(zip(expressions, map(int, said.split()), strict=True))


def enums() -> list[type[enum.IntEnum | enum.IntFlag]]:
    return [
        value
        for value in vars(constants).values()
        if isinstance(value, type) and issubclass(value, (enum.IntEnum, enum.IntFlag)) and list(value)
    ]


def structures() -> list[Any]:
    return [
        value
        for value in vars(constants).values()
        if isinstance(value, type) and issubclass(value, ctypes.Structure)
    ]


def test_every_constant_is_the_headers(tmp_path: Path) -> None:
    expected = {"PCI_HEADER_TYPE_NORMAL": constants.PCI_HEADER_TYPE_NORMAL}
    for kind in (*enums(), PciRegion, PciIrq):
        for member in kind:
            name = PREFIXES[kind].format(member.name)
            expected[RENAMED.get(name, name)] = int(member)
    assert len(expected) > 30
    assert evaluate(tmp_path, list(expected)) == expected


def test_every_structure_has_the_headers_layout(tmp_path: Path) -> None:
    expected: dict[str, int] = {}
    for structure in structures():
        name, renamed = STRUCTURES[structure]
        expected[f"sizeof({name})"] = ctypes.sizeof(structure)
        for field, kind in structure._fields_:
            in_c = renamed.get(field, field)
            expected[f"offsetof({name}, {in_c})"] = getattr(structure, field).offset
            expected[f"sizeof((({name} *)0)->{in_c})"] = ctypes.sizeof(kind)
    assert len(expected) == 2 + 2 * (2 + 5)
    assert evaluate(tmp_path, list(expected)) == expected


def declared(name: str, result: Any, arguments: tuple[Any, ...]) -> str:
    """A declaration that only the header's own agrees with; pointers without a type are taken as they are there."""
    kinds = [C_TYPES.get(argument, "void *") for argument in arguments]
    kinds[0] = "vfu_ctx_t *"
    if name == "vfu_create_ctx":
        # The enums of C are unsigned int to gcc, and passed as int is.
        return f"vfu_ctx_t *{name}(vfu_trans_t, const char *, int, void *, vfu_dev_type_t);"
    if name == "vfu_pci_init":
        kinds[1] = "vfu_pci_type_t"
    if name == "vfu_setup_device_nr_irqs":
        kinds[1] = "enum vfu_dev_irq_type"
    return f"{C_TYPES.get(result, 'void *')} {name}({', '.join(kinds)});"


def test_every_prototype_is_the_headers(tmp_path: Path) -> None:
    lines = [declared(name, *signature) for name, signature in SIGNATURES.items()]
    lines.append(declared("vfu_setup_device_dma", ctypes.c_int, Generation.OLDER.value))
    for name, kind in CALLBACKS.items():
        lines.append(f"static {name} checked_{name} __attribute__((unused));")
        kinds = [C_TYPES.get(argument, "char *") for argument in kind._argtypes_]
        kinds[0] = "vfu_ctx_t *"
        if name == "vfu_log_fn_t":
            kinds[2] = "const char *"
        if name == "vfu_reset_cb_t":
            kinds[1] = "vfu_reset_type_t"
        if name == "vfu_region_access_cb_t":
            kinds[3] = "loff_t"
        parameters = ", ".join(f"{argument} a{number}" for number, argument in enumerate(kinds))
        result = C_TYPES[kind._restype_]
        body = "" if result == "void" else " return 0; "
        lines.append(f"static {result} checked_{name}({parameters}) {{{body}}}")
    source = tmp_path / "prototypes.c"
    source.write_text(f"{INCLUDES}#include <vfio-user/libvfio-user.h>\n" + "\n".join(lines) + "\n")
    compile_c(source, tmp_path / "prototypes.o", "-c", "-Wno-unused-function")


def test_the_types_of_callbacks_have_the_sizes_of_c(tmp_path: Path) -> None:
    expected = {
        "sizeof(loff_t)": ctypes.sizeof(constants.loff_t),
        "sizeof(ssize_t)": ctypes.sizeof(ctypes.c_ssize_t),
        "sizeof(bool)": ctypes.sizeof(ctypes.c_bool),
        "sizeof(vfu_reset_type_t)": ctypes.sizeof(ctypes.c_int),
        "sizeof(vfu_trans_t)": ctypes.sizeof(ctypes.c_int),
        "sizeof(enum vfu_dev_irq_type)": ctypes.sizeof(ctypes.c_int),
    }
    assert evaluate(tmp_path, list(expected)) == expected


def test_the_function_that_tells_the_generations_apart_is_in_the_older_header(tmp_path: Path) -> None:
    assert evaluate(tmp_path, [f"sizeof(&{OLDER_ONLY})"]) == {f"sizeof(&{OLDER_ONLY})": 8}
