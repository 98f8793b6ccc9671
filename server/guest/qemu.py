"""Finding a QEMU that speaks vfio-user: the user's, the one on PATH, or one from Debian's packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.guest.errors import GuestError
from server.guest.packages import LIBRARIES, QEMU, unpacked
from server.guest.progress import Report, to_stderr
from server.qemu.client import CLIENT

PROGRAM = "qemu-system-x86_64"
OLDEST = (10, 1)
"""The first release of QEMU with the vfio-user client."""

_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU that can be started: ``argv`` comes before its options, ``env`` on top of the environment."""

    argv: tuple[str, ...]
    version: tuple[int, int, int]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def release(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))

    def environment(self) -> dict[str, str]:
        """Return the whole environment to start it with."""
        return {**os.environ, **self.env}


def find_qemu(report: Report = to_stderr) -> Qemu:
    """Return ``$VGPUD_QEMU``, else the one on PATH if new enough, else a private one (downloaded once).

    Raises :class:`GuestError` where none can be had, or where VGPUD_QEMU names one that will not do.
    """
    if own := os.environ.get("VGPUD_QEMU"):
        return inspect_qemu((own,))
    if on_path := shutil.which(PROGRAM):
        try:
            return inspect_qemu((on_path,))
        except GuestError as reason:
            report(f"using a private QEMU: {reason}")
    return private_qemu(report)


def private_qemu(report: Report = to_stderr) -> Qemu:
    """Return the QEMU of Debian's packages in the cache, which is downloaded first where it is missing."""
    return inspect_qemu(*_private_command(unpacked(QEMU, report)))


def inspect_qemu(argv: tuple[str, ...], env: Mapping[str, str] | None = None) -> Qemu:
    """Start the QEMU of ``argv`` to see what it is.

    Raises :class:`GuestError` where it does not start, is older than :data:`OLDEST` or has no vfio-user
    client.
    """
    env = env or {}
    match = _VERSION.search(_output((*argv, "--version"), env))
    if match is None:
        raise GuestError(f"{argv[0]} does not say which version of QEMU it is")
    version = (int(match[1]), int(match[2]), int(match[3] or 0))
    qemu = Qemu(argv, version, env)
    if version < OLDEST:
        raise GuestError(f"{argv[0]} is QEMU {qemu.release}; vfio-user needs 10.1 or later")
    if f'"{CLIENT}"' not in _output((*argv, "-device", "help"), env):
        raise GuestError(f"{argv[0]} was built without {CLIENT}")
    return qemu


def _private_command(root: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Run it with the libraries that it was built for, whatever the machine's own are."""
    libraries = root / LIBRARIES
    firmware = [root / "usr/share" / folder for folder in ("qemu", "seabios")]
    argv = (
        str(libraries / "ld-linux-x86-64.so.2"),
        "--library-path",
        str(libraries),
        str(root / "usr/bin" / PROGRAM),
        *(part for folder in firmware for part in ("-L", str(folder))),
    )
    return argv, {"QEMU_MODULE_DIR": str(libraries / "qemu")}


def _output(command: tuple[str, ...], env: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, check=True, timeout=120
        )
    except subprocess.CalledProcessError as error:
        lines = tuple(error.stderr.splitlines()[-20:])
        raise GuestError(f"{command[0]} does not run: {lines[-1] if lines else error}", lines) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{command[0]} does not run: {error}") from error
    return done.stdout
