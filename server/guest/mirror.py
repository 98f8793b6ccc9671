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
    also on a machine that never ran ``apt-get update``. Raises :class:`GuestError` where there is no such
    source.
    """
    if own := os.environ.get("VGPUD_MIRROR"):
        return own
    try:
        listing = subprocess.run(
            ["apt-get", "update", "--print-uris", "-o", "Debug::NoLocking=true"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise GuestError(
            "no apt to get Debian's packages with: install QEMU >= 10.1, or name one in VGPUD_QEMU,"
            " and name a kernel image in VGPUD_KERNEL"
        ) from error
    return choose_mirror(listing, _own_codename())


def choose_mirror(listing: str, codename: str) -> str:
    """Choose the archive from ``listing`` (of ``--print-uris``), preferring the one of suite ``codename``."""
    candidates = [
        (match["base"], match["suite"])
        for match in map(_RELEASE_FILE.match, listing.splitlines())
        if match and match["suite"].partition("-")[0] in _RELEASES
    ]
    main = [(base, suite) for base, suite in candidates if not suite.endswith("-security")]
    for base, suite in sorted(main, key=lambda candidate: candidate[1] != codename):
        if not base.endswith("-security") and suite in _RELEASES:
            return base
    raise GuestError("apt knows no Debian archive: name a mirror in VGPUD_MIRROR, or a QEMU in VGPUD_QEMU")


def archive_keyring() -> Path:
    """Return the keyring that Debian's archive is verified with. Raises :class:`GuestError` without one."""
    keyring = KEYRINGS / _ARCHIVE_KEYRING
    if keyring.is_file():
        return keyring
    modern = keyring.with_suffix(".pgp")
    if modern.is_file():
        return modern
    raise GuestError(f"{keyring} is missing: apt-get install debian-archive-keyring")


def _own_codename() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""
