"""What the machine boots from: Debian with systemd and Python, and the wheels to install the project from, offline.

Both are made once, and kept in the cache. Needs root, and mmdebstrap.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from server.guest.cache import cache_dir, provide
from server.guest.mirror import debian_mirror

ROOT = Path(__file__).parents[4]
WHEELS = Path("/wheels")
"""Where the wheels are inside."""
_SUITE = "bookworm"
_PYTHON = "3.11"
"""The suite's."""
_MINUTES = 15
_BOOTSTRAP = (
    "--variant=minbase",
    "--include=systemd,libnss-systemd,udev,python3,python3-venv",
    *(
        f"--dpkgopt=path-exclude=/usr/share/{unused}/*"
        for unused in ("man", "doc", "locale", "info", "lintian")
    ),
    # else each boot is the first one
    '--customize-hook=systemd-machine-id-setup --root="$1"',
)


def lower_folders() -> list[Path]:
    """The folders that, put on top of each other, are the root file system. Raises CalledProcessError."""
    return [_wheels(), _debian()]


def _debian() -> Path:
    options = [*_BOOTSTRAP, *(f"--aptopt={option}" for option in _apt_options())]
    mirror = debian_mirror()
    # in a mount namespace of its own, so that nothing stays mounted in what is removed after a failure
    command = ["unshare", "--mount", "mmdebstrap", *options, _SUITE]

    def make(folder: Path) -> None:
        _quietly(*command, str(folder / "root"), mirror)

    return provide(cache_dir(), f"systemd-{_digest(*command, mirror)}", make) / "root"


def _wheels() -> Path:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]

    def make(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", f"--python-version={_PYTHON}"]
        _quietly(*pip, "--dest", f"{folder}{WHEELS}", *needed)

    return provide(cache_dir(), f"systemd-wheels-{_digest(_PYTHON, *needed)}", make)


def _apt_options() -> list[str]:
    """How this machine reaches its mirror."""
    dump = ["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"]
    lines = subprocess.run(dump, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "::Proxy" in line or line.startswith("Acquire::Check-")]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _quietly(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        text=True,
        timeout=60 * _MINUTES,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
