"""``python -m server.guest.source PACKAGE SUITE FOLDER``: download a Debian source package without root."""

from __future__ import annotations

import sys
from pathlib import Path

from server.guest.apt import Archive, PrivateApt
from server.guest.cache import cache_dir, locked
from server.guest.errors import GuestError
from server.guest.progress import Report, to_stderr


def download_source(package: str, suite: str, folder: Path, report: Report = to_stderr) -> list[Path]:
    """Download the source package of ``suite`` into ``folder``; returns its files. Raises GuestError."""
    root = cache_dir()
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / ".apt-src.lock", report):
        apt = PrivateApt(root / "apt-src", Archive((suite,), kind="deb-src"), report)
        return apt.download_source(package, folder)


def main(arguments: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    if len(arguments) != 3:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    package, suite, folder = arguments
    try:
        download_source(package, suite, Path(folder))
    except (GuestError, OSError) as error:
        sys.stderr.write(f"{package}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
