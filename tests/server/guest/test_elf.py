from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.guest.elf import ElfFile, libraries_of
from server.guest.errors import GuestError

PROGRAM = Path(sys.executable).resolve()
WHOLE = Path("/bin/true").resolve().read_bytes()


def readelf(option: str, path: Path) -> str:
    return subprocess.run(["readelf", option, str(path)], capture_output=True, text=True, check=True).stdout


def test_libraries_and_loader_are_what_readelf_says() -> None:
    elf = ElfFile(PROGRAM.read_bytes())
    assert elf.needed == tuple(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", PROGRAM)))
    assert elf.needed
    (loader,) = re.findall(r"Requesting program interpreter: (.*)\]", readelf("-l", PROGRAM))
    assert elf.interpreter == loader


def test_all_libraries_are_what_the_loader_finds() -> None:
    listing = subprocess.run(["ldd", "/bin/ls"], capture_output=True, text=True, check=True).stdout
    expected = {Path(path).name: Path(path).resolve() for path in re.findall(r"(/\S+) \(", listing)}
    folders = {path.parent for path in map(Path, re.findall(r"(/\S+) \(", listing))}
    found = libraries_of(Path("/bin/ls"), folders)
    assert {name: path.resolve() for name, path in found.items()} == expected


def test_a_library_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"needs \S+\.so\.\d+, which is in none of"):
        libraries_of(Path("/bin/ls"), [tmp_path])


def test_a_section_is_found_by_name(tmp_path: Path) -> None:
    source, built = tmp_path / "module.s", tmp_path / "module.o"
    source.write_text('.section .modinfo,"a"\n.asciz "depends=drm,virtio-ring"\n')
    subprocess.run(["as", "-o", str(built), str(source)], check=True)
    elf = ElfFile(built.read_bytes())
    assert elf.section(".modinfo") == b"depends=drm,virtio-ring\0"
    assert elf.section(".nothing") is None
    assert elf.needed == ()
    assert elf.interpreter is None


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.integers(0, len(WHOLE)))
def test_a_damaged_file_raises_nothing_but_value_error(position: int, value: int, length: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[position % 4096] = value
    for data in (bytes(damaged), WHOLE[:length]):
        try:
            elf = ElfFile(data)
            _ = elf.needed, elf.interpreter, elf.section(".modinfo")
        except ValueError:
            pass
