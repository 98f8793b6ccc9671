"""C for the tests of the binding, compiled against the library's header."""

from __future__ import annotations

import subprocess
from pathlib import Path

from server.guest.cache import cache_dir

SOURCES = Path(__file__).parent / "c"


def header_folder() -> Path:
    """Where libvfio-user.h is. ``make libvfio-user`` gets it."""
    folder = cache_dir() / "libvfio-user" / "include"
    assert folder.exists(), "libvfio-user is not there: run 'make libvfio-user' first"
    return folder


def compile_c(source: Path, output: Path, *options: str) -> Path:
    """Compile one file; the test fails with what the compiler says."""
    command = ["gcc", "-Wall", "-Werror", f"-I{header_folder()}", "-o", str(output), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output
