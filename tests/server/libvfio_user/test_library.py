"""Finding libvfio-user, telling its generations apart, and what is said where it is not there."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from server.guest.cache import cache_dir
from server.libvfio_user import library as library_module
from server.libvfio_user.constants import DmaRegister, DmaUnregister
from server.libvfio_user.library import (
    HOW_TO_GET_IT,
    SONAME,
    VARIABLE,
    Generation,
    Library,
    LibraryMissing,
    load_library,
)
from tests.server.libvfio_user.compiled import SOURCES, compile_c

NO_CALLBACKS = DmaRegister(), DmaUnregister()


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("newer") / SONAME
    return str(compile_c(SOURCES / "newer_generation.c", output, "-shared", "-fPIC"))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is installed; the cache is in the folder that this gives."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    monkeypatch.setattr(library_module, "FOLDERS", (str(tmp_path / "usual"),))
    monkeypatch.setenv("VGPUD_CACHE", str(tmp_path / "cache"))
    return tmp_path


def put(library: str, folder: Path) -> str:
    folder.mkdir(parents=True)
    path = folder / SONAME
    path.write_bytes(Path(library).read_bytes())
    return str(path)


def test_the_library_of_this_machine_is_the_older_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(cache_dir() / "libvfio-user" / "lib" / SONAME))
    library = load_library()
    assert library.generation is Generation.OLDER
    assert library.max_dma_regions(65_535) == 16
    assert library.max_dma_regions(8) == 8


def test_the_newer_generation_is_told_how_many_regions_to_hold(newer: str) -> None:
    library = Library(newer)
    assert library.generation is Generation.NEWER
    assert library.max_dma_regions(65_535) == 65_535
    library.setup_device_dma(0, 1234, *NO_CALLBACKS)
    assert ctypes.c_size_t.in_dll(ctypes.CDLL(newer), "asked_for_regions").value == 1234


def test_a_call_that_fails_is_an_error_with_its_errno_and_its_name(newer: str) -> None:
    library = Library(newer)
    code = ctypes.c_int.in_dll(ctypes.CDLL(newer), "fails_with")
    code.value = errno.ENOSPC
    try:
        with pytest.raises(OSError, match="vfu_realize_ctx") as realize:
            library.realize_ctx(0)
        with pytest.raises(OSError, match="vfu_create_ctx") as create:
            library.create_ctx(0, b"/nowhere", 0, None, 0)
    finally:
        code.value = 0
    assert realize.value.errno == create.value.errno == errno.ENOSPC


def test_the_variable_comes_first_then_the_linker_then_the_usual_folders_then_the_cache(
    nowhere: Path, newer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(newer, nowhere / "cache" / "libvfio-user" / "lib")
    assert load_library().path == cached
    usual = put(newer, nowhere / "usual")
    assert load_library().path == usual
    known = put(newer, nowhere / "known")
    monkeypatch.setattr(ctypes.util, "find_library", {"vfio-user": known}.get)
    assert load_library().path == known
    named = put(newer, nowhere / "named")
    monkeypatch.setenv(VARIABLE, named)
    assert load_library().path == named


def test_where_it_is_missing_one_line_says_how_to_get_it(nowhere: Path) -> None:
    with pytest.raises(LibraryMissing) as missing:
        load_library()
    assert HOW_TO_GET_IT in str(missing.value)
    assert "\n" not in str(missing.value)


@pytest.mark.parametrize("named", ["/no/such/library.so", __file__, "libc.so.6"])
def test_a_variable_that_names_something_else_is_one_line_with_its_name(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(LibraryMissing) as missing:
        load_library()
    assert str(missing.value).startswith(f"{named} is no libvfio-user")
    assert HOW_TO_GET_IT in str(missing.value)
    assert "\n" not in str(missing.value)


def test_serve_says_in_one_line_that_it_is_missing(tmp_path: Path) -> None:
    where = ["--socket-path", str(tmp_path / "socket")]
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve", *where, "--transport", "libvfio-user"],
        env={VARIABLE: "/no/such/library.so"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert HOW_TO_GET_IT in done.stderr


def test_nothing_of_it_is_loaded_until_it_is_asked_for() -> None:
    script = (
        "import sys; import server.serve, server.cli; from server.transports import choose_transport;"
        "from devices.models import MODELS; from devices.registry import create_device;"
        "choose_transport('auto', create_device(MODELS, 'virtio-gpu'));"
        "print([name for name in sys.modules if name.startswith('server.libvfio_user')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
