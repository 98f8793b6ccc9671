"""Each generation is called with its own arguments, every function says how it failed, and half a library is none."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
from pathlib import Path
from typing import Any

import pytest

from server.guest.cache import cache_dir
from server.libvfio_user import library as library_module
from server.libvfio_user.constants import DmaRegister, DmaUnregister, LogMessage, Quiesce, RegionAccess, Reset
from server.libvfio_user.library import (
    HOW_TO_GET_IT,
    SIGNATURES,
    SONAME,
    VARIABLE,
    Generation,
    Library,
    LibraryMissing,
    load_library,
)
from tests.server.libvfio_user.compiled import SOURCES, compile_c

CONTEXT = 0x1234
NOTHING: dict[Any, Any] = {
    ctypes.c_void_p: None,
    ctypes.c_char_p: b"",
    **{kind: kind() for kind in (RegionAccess, DmaRegister, DmaUnregister, Quiesce, Reset, LogMessage)},
}
"""Arguments that say nothing, where 0 is none."""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("older") / SONAME
    return str(compile_c(SOURCES / "older_generation.c", output, "-shared", "-fPIC"))


@pytest.fixture
def failing(older: str) -> ctypes.c_int:
    """Set to an errno, to have every function fail with it; to -1, to have it fail and say nothing."""
    code = ctypes.c_int.in_dll(ctypes.CDLL(older), "fails_with")
    code.value = 0
    return code


def address_of(callback: Any) -> int | None:
    return ctypes.cast(callback, ctypes.c_void_p).value


def call(library: Library, name: str) -> Any:
    _, kinds = SIGNATURES[name]
    arguments = []
    for kind in kinds:
        if kind in NOTHING:
            arguments.append(NOTHING[kind])
        else:
            arguments.append(None if hasattr(kind, "contents") else 0)
    return getattr(library, name.removeprefix("vfu_"))(*arguments)


def functions_that_can_fail() -> list[str]:
    return [name for name, (result, _) in SIGNATURES.items() if result is not None]


def test_the_older_generation_is_given_the_callbacks_and_no_number(older: str, failing: ctypes.c_int) -> None:
    library = Library(older)
    assert library.generation is Generation.OLDER
    added = DmaRegister(lambda _context, _info: None)
    removed = DmaUnregister(lambda _context, _info: None)
    library.setup_device_dma(CONTEXT, 1234, added, removed)
    recorded = [
        ctypes.c_void_p.in_dll(ctypes.CDLL(older), name).value
        for name in ("dma_context", "dma_added", "dma_removed")
    ]
    assert recorded == [CONTEXT, address_of(added), address_of(removed)]


def test_a_dma_controller_that_cannot_be_made_is_an_error_with_its_errno(
    older: str, failing: ctypes.c_int
) -> None:
    failing.value = errno.ENOMEM
    with pytest.raises(OSError, match="vfu_setup_device_dma") as raised:
        Library(older).setup_device_dma(CONTEXT, 16, DmaRegister(), DmaUnregister())
    assert raised.value.errno == errno.ENOMEM


@pytest.mark.parametrize("name", functions_that_can_fail())
def test_every_function_that_fails_is_an_error_with_its_errno_and_its_name(
    older: str, failing: ctypes.c_int, name: str
) -> None:
    library = Library(older)
    call(library, name)
    failing.value = errno.ENOTCONN
    with pytest.raises(OSError, match=f"^.*{name}: ") as raised:
        call(library, name)
    assert raised.value.errno == errno.ENOTCONN


def test_a_function_that_fails_without_an_errno_is_an_input_output_error(
    older: str, failing: ctypes.c_int
) -> None:
    failing.value = -1
    ctypes.set_errno(0)
    with pytest.raises(OSError, match="vfu_run_ctx") as raised:
        Library(older).run_ctx(CONTEXT)
    assert raised.value.errno == errno.EIO


def test_a_library_that_lacks_a_function_is_refused_with_the_functions_name(tmp_path: Path) -> None:
    half = compile_c(SOURCES / "older_generation.c", tmp_path / SONAME, "-shared", "-fPIC", "-DWITHOUT_RUN")
    with pytest.raises(LibraryMissing, match="vfu_run_ctx") as missing:
        Library(str(half))
    assert str(missing.value).startswith(str(half))
    assert HOW_TO_GET_IT in str(missing.value)
    assert "\n" not in str(missing.value)


def test_a_variable_that_is_empty_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    monkeypatch.setattr(library_module, "FOLDERS", ())
    monkeypatch.setenv(VARIABLE, "")
    assert load_library().path == str(cache_dir() / "libvfio-user" / "lib" / SONAME)


def test_a_variable_that_is_wrong_is_no_reason_to_look_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for wrong in (tmp_path, tmp_path / "none.so"):
        monkeypatch.setenv(VARIABLE, str(wrong))
        with pytest.raises(LibraryMissing) as missing:
            load_library()
        assert str(missing.value).startswith(f"{wrong} is no libvfio-user")
        assert "\n" not in str(missing.value)


def test_the_usual_folders_are_looked_at_in_their_order(
    older: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("empty", "first", "second")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[1:]:
        (folder / SONAME).write_bytes(Path(older).read_bytes())
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    monkeypatch.setattr(library_module, "FOLDERS", tuple(map(str, folders)))
    assert load_library().path == str(folders[1] / SONAME)
