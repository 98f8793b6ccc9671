"""libvfio-user.so, bound with ctypes: one table of signatures, one of error checks, one loader.

Two incompatible generations of the library carry the same soname. They are told apart by what they export, and
:meth:`Library.setup_device_dma` is the one call, of those made here, that they declare differently.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from server.guest.cache import cache_dir
from server.libvfio_user.constants import (
    DmaRegister,
    DmaUnregister,
    Iovec,
    LogMessage,
    Quiesce,
    RegionAccess,
    Reset,
)

SONAME = "libvfio-user.so.0"
VARIABLE = "VGPUD_LIBVFIO_USER"
"""Names the library's file; looked at before anything else."""
FOLDERS = ("/usr/local/lib", "/usr/local/lib64", "/usr/lib", "/usr/lib64", "/opt/libvfio-user/lib")
"""Where builds of the library are put that the dynamic linker was not told of."""
HOW_TO_GET_IT = f"run 'make libvfio-user' in vgpud's sources, or set {VARIABLE} to the path of {SONAME}"

MAX_DMA_REGIONS_OF_OLDER = 16

_Context = ctypes.c_void_p
_Signature = tuple[Any, tuple[Any, ...]]

SIGNATURES: dict[str, _Signature] = {
    "vfu_create_ctx": (
        _Context,
        (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    ),
    "vfu_realize_ctx": (ctypes.c_int, (_Context,)),
    "vfu_attach_ctx": (ctypes.c_int, (_Context,)),
    "vfu_get_poll_fd": (ctypes.c_int, (_Context,)),
    "vfu_run_ctx": (ctypes.c_int, (_Context,)),
    "vfu_destroy_ctx": (None, (_Context,)),
    "vfu_setup_log": (ctypes.c_int, (_Context, LogMessage, ctypes.c_int)),
    "vfu_pci_init": (ctypes.c_int, (_Context, ctypes.c_int, ctypes.c_int, ctypes.c_int)),
    "vfu_setup_region": (
        ctypes.c_int,
        (
            _Context,
            ctypes.c_int,
            ctypes.c_size_t,
            RegionAccess,
            ctypes.c_int,
            ctypes.POINTER(Iovec),
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint64,
        ),
    ),
    "vfu_setup_device_nr_irqs": (ctypes.c_int, (_Context, ctypes.c_int, ctypes.c_uint32)),
    "vfu_setup_device_reset_cb": (ctypes.c_int, (_Context, Reset)),
    "vfu_setup_device_quiesce_cb": (None, (_Context, Quiesce)),
    "vfu_device_quiesced": (ctypes.c_int, (_Context, ctypes.c_int)),
}
"""Result and arguments of every function in use that both generations declare alike."""


class Generation(Enum):
    """Which libvfio-user this is; the value is its ``vfu_setup_device_dma``."""

    OLDER = (_Context, DmaRegister, DmaUnregister)
    """QEMU 7.2, Debian 12: holds 16 DMA regions, and counts a migration region among the regions."""
    NEWER = (_Context, ctypes.c_size_t, DmaRegister, DmaUnregister)
    """After migration version 2: is told how many DMA regions to hold."""


OLDER_ONLY = "vfu_get_migr_register_area_size"
"""Exported by the older generation alone."""


class LibraryMissing(Exception):  # noqa: N818 - what the user reads
    """libvfio-user cannot be loaded; the text is one line that names the fix."""


def _not_negative(result: int, function: Any, _arguments: tuple[object, ...]) -> int:
    if result < 0:
        raise _last_error(function)
    return result


def _not_null(result: int | None, function: Any, _arguments: tuple[object, ...]) -> int:
    if result is None:
        raise _last_error(function)
    return result


def _last_error(function: Any) -> OSError:
    code = ctypes.get_errno() or errno.EIO
    return OSError(code, f"{function.__name__}: {os.strerror(code)}")


ERROR_CHECKS: dict[Any, Callable[..., int]] = {ctypes.c_int: _not_negative, _Context: _not_null}
"""By the type of the result: how a function says that it failed. Such a call raises OSError with the errno."""


class Library:
    """The loaded library: its functions as methods of the same name without ``vfu_``. Not thread-safe."""

    def __init__(self, path: str) -> None:
        """Load ``path``. Raises LibraryMissing."""
        self.path = path
        """What was loaded: a path, or a name that the dynamic linker knows."""
        try:
            self._loaded = ctypes.CDLL(path, use_errno=True)
            self.generation = Generation.OLDER if hasattr(self._loaded, OLDER_ONLY) else Generation.NEWER
            for name, (result, arguments) in SIGNATURES.items():
                setattr(self, name.removeprefix("vfu_"), self._bind(name, result, arguments))
            self._setup_device_dma = self._bind("vfu_setup_device_dma", ctypes.c_int, self.generation.value)
        except (OSError, AttributeError) as error:
            raise LibraryMissing(f"{path} is no libvfio-user ({error}); {HOW_TO_GET_IT}") from error

    create_ctx: Callable[[int, bytes, int, None, int], int]
    realize_ctx: Callable[[int], int]
    attach_ctx: Callable[[int], int]
    get_poll_fd: Callable[[int], int]
    run_ctx: Callable[[int], int]
    destroy_ctx: Callable[[int], None]
    setup_log: Callable[[int, object, int], int]
    pci_init: Callable[[int, int, int, int], int]
    setup_region: Callable[[int, int, int, object, int, object, int, int, int], int]
    setup_device_nr_irqs: Callable[[int, int, int], int]
    setup_device_reset_cb: Callable[[int, object], int]
    setup_device_quiesce_cb: Callable[[int, object], None]
    device_quiesced: Callable[[int, int], int]

    def setup_device_dma(self, context: int, max_regions: int, register: object, unregister: object) -> None:
        """``vfu_setup_device_dma`` of either generation; the older one holds 16 regions whatever it is told."""
        if self.generation is Generation.OLDER:
            self._setup_device_dma(context, register, unregister)
        else:
            self._setup_device_dma(context, max_regions, register, unregister)

    def max_dma_regions(self, wanted: int) -> int:
        """How many DMA regions the library holds where ``wanted`` are asked for."""
        return min(wanted, MAX_DMA_REGIONS_OF_OLDER) if self.generation is Generation.OLDER else wanted

    def _bind(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        function = getattr(self._loaded, name)
        function.restype, function.argtypes = result, arguments
        check = ERROR_CHECKS.get(result)
        if check is not None:
            function.errcheck = check
        return function


def load_library() -> Library:
    """Find libvfio-user and load it. Raises LibraryMissing."""
    path = os.environ.get(VARIABLE) or next(_found(), None)
    if path is None:
        raise LibraryMissing(f"libvfio-user is not installed; {HOW_TO_GET_IT}")
    return Library(path)


def _found() -> Iterator[str]:
    known = ctypes.util.find_library("vfio-user")
    if known is not None:
        yield known
    for folder in (*FOLDERS, cache_dir() / "libvfio-user" / "lib"):
        path = Path(folder) / SONAME
        if path.exists():
            yield str(path)
