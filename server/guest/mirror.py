"""Which Debian mirror this machine uses: apt is asked, so proxies and local mirrors are honoured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from server.guest.errors import GuestError

KEYRINGS = Path("/usr/share/keyrings")
_ARCHIVE_KEYRING = "debian-archive-keyring.gpg"
_RELEASES = {"bookworm", "trixie", "stable", "oldstable", "testing", "unstable", "sid"}
_RELEASE_FILE = re.compile(r"^'(?P<base>[^']+?)/?/dists/(?P<suite>[^']+)/(?:In)?Release'")


def debian_mirror() -> str:
    """Return the URI of the Debian archive in apt's configuration, or ``$VGPUD_MIRROR``.

    ``apt-get update --print-uris`` lists what apt would fetch, in whatever format the sources are written,
    also on a machine that never ran ``apt-get update``; where it did, apt knows the origin of each repository
    too. Raises :class:`GuestError` where there is no such source.
    """
    if own := os.environ.get("VGPUD_MIRROR"):
        return own
    try:
        sources = _apt_get("update", "--print-uris", "-o", "Debug::NoLocking=true")
        origins = _apt_get("indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    except (OSError, subprocess.CalledProcessError) as error:
        raise GuestError(
            "no apt to get Debian's packages with: install QEMU >= 10.1, or name one in VGPUD_QEMU,"
            " and name a kernel image in VGPUD_KERNEL"
        ) from error
    return choose_mirror(sources, origins, _own_codename())


def choose_mirror(sources: str, origins: str, codename: str) -> str:
    """Choose the archive from what apt says about its sources.

    Other projects' repositories may be called after Debian's releases as well. What is known to come from Debian
    goes first, then the machine's own release ``codename``, then a repository that has updates for it.
    """
    releases = [(m["base"], m["suite"]) for m in map(_RELEASE_FILE.match, sources.splitlines()) if m]
    debian = {line.split()[1].rstrip("/") for line in origins.splitlines() if line.startswith("Debian ")}
    candidates = [(base, suite) for base, suite in releases if suite in _RELEASES]
    if not candidates:
        raise GuestError(
            "apt knows no Debian archive: name a mirror in VGPUD_MIRROR, or a QEMU in VGPUD_QEMU"
        )

    def misfit(candidate: tuple[str, str]) -> tuple[bool, bool, bool]:
        base, suite = candidate
        return base not in debian, suite != codename, (base, f"{suite}-updates") not in releases

    return min(candidates, key=misfit)[0]


def archive_keyring() -> Path:
    """Return the keyring that Debian's archive is verified with. Raises :class:`GuestError` without one."""
    keyring = KEYRINGS / _ARCHIVE_KEYRING
    if keyring.is_file():
        return keyring
    modern = keyring.with_suffix(".pgp")
    if modern.is_file():
        return modern
    raise GuestError(f"{keyring} is missing: apt-get install debian-archive-keyring")


def _apt_get(*arguments: str) -> str:
    done = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _own_codename() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""
