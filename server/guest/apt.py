"""Debian packages without touching the system: apt with a state, sources and pins of its own, and no root.

The machine's apt configuration is read first, so proxies, credentials and certificates are inherited; what
would touch the system (its package state, its lists, its hooks) is replaced.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.guest.errors import GuestError
from server.guest.mirror import archive_keyring, debian_mirror
from server.guest.progress import Report, mebibytes

_LISTS_STAY_GOOD = 600.0
"""Seconds for which package lists are used again; after that apt looks for newer ones."""

_PROGRESS_STEP = 20
"""Percent of a download between two lines of progress."""

_CONFIG = """\
#clear APT::Update;
#clear DPkg;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
APT::Get::List-Cleanup "true";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}/state";
Dir::State::lists "lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "archives";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "/dev/null";
"""

_PROVIDED = """\
Package: {name}
Status: install ok installed
Version: 9999
Architecture: all
Multi-Arch: foreign
Maintainer: none
Description: taken as installed

"""


@dataclass(frozen=True, slots=True)
class Archive:
    """What apt is to choose from.

    ``suites`` of the machine's mirror, binary (``deb``) or source packages (``deb-src``); ``pinned`` gives,
    by suite, the source packages that come from it although another suite has them; ``provided`` names
    packages that count as installed, so that nothing pulls them in.
    """

    suites: tuple[str, ...]
    kind: str = "deb"
    pinned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    provided: tuple[str, ...] = ()


class PrivateApt:
    """apt, with everything that it writes inside ``folder``. One user at a time: hold a lock around it."""

    def __init__(self, folder: Path, archive: Archive, report: Report) -> None:
        """Lay out ``folder``. Raises :class:`GuestError` where apt knows of no Debian archive."""
        self._folder = folder.absolute()
        self._report = report
        self._archives = self._folder / "cache/archives"
        for part in (self._folder / "state/lists/partial", self._archives / "partial"):
            part.mkdir(parents=True, exist_ok=True)
        self._write("apt.conf", _CONFIG.format(folder=self._folder))
        self._write("status", "".join(_PROVIDED.format(name=name) for name in archive.provided))
        self._write("preferences", _preferences(archive))
        source = f"{archive.kind} [signed-by={archive_keyring()}] {debian_mirror()}"
        sources_changed = self._write(
            "sources.list", "".join(f"{source} {suite} main\n" for suite in archive.suites)
        )
        self._updated = self._folder / "updated"
        if sources_changed:
            self._updated.unlink(missing_ok=True)

    def update(self) -> None:
        """Fetch the package lists, unless that was done minutes ago."""
        if self._updated.exists() and time.time() - self._updated.stat().st_mtime < _LISTS_STAY_GOOD:
            return
        self._report("fetching Debian's package lists")
        self._run("apt-get", "update", "-qq", "--error-on=any")
        self._updated.touch()

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Download ``packages`` and all that they depend on; returns the .deb files."""
        self.update()
        for left_over in self._archives.glob("*.deb"):
            left_over.unlink()
        install = ("apt-get", "install", "-qq", "-y", *packages)
        sizes = [int(line.split()[2]) for line in self._run(*install, "--print-uris").splitlines()]
        self._report(f"downloading {len(sizes)} Debian packages, {mebibytes(sum(sizes))}")
        self._download(*install, "--download-only", "-o", "APT::Status-Fd=1")
        return sorted(self._archives.glob("*.deb"))

    def download_source(self, package: str, destination: Path) -> list[Path]:
        """Download the newest source package ``package`` into ``destination``; returns its files."""
        self.update()
        self._report(f"downloading the source package {package}")
        self._run("apt-get", "source", "-qq", "--download-only", "--only-source", package, cwd=destination)
        return sorted(destination.iterdir())

    def _write(self, name: str, text: str) -> bool:
        path = self._folder / name
        changed = not path.exists() or path.read_text() != text
        path.write_text(text)
        return changed

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [program, "-c", str(self._folder / "apt.conf"), *arguments]

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(self._command(*command), capture_output=True, text=True, cwd=cwd, check=False)
        _check(done.returncode, done.stderr)
        return done.stdout

    def _download(self, *command: str) -> None:
        errors = self._folder / "errors"
        with (
            errors.open("w") as stderr,
            subprocess.Popen(
                self._command(*command), stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as apt,
        ):
            assert apt.stdout is not None  # noqa: S101 - Popen gives what was asked for
            told = 0
            for line in apt.stdout:
                percent = _downloaded_percent(line)
                if percent >= told + _PROGRESS_STEP:
                    told = percent - percent % _PROGRESS_STEP
                    self._report(f"  {told} % downloaded")
        _check(apt.returncode, errors.read_text())


def _preferences(archive: Archive) -> str:
    entries = [
        f"Package: {' '.join(f'src:{source}' for source in sources)}\n"
        f"Pin: release n={suite}\n"
        "Pin-Priority: 600\n"
        for suite, sources in archive.pinned.items()
    ]
    return "\n".join(entries)


def _downloaded_percent(line: str) -> int:
    """Read apt's progress: ``dlstatus:<file>:<percent>:<text>``; 0 for other lines."""
    fields = line.split(":")
    if len(fields) > 2 and fields[0] == "dlstatus":
        return int(float(fields[2]))
    return 0


def _check(status: int, stderr: str) -> None:
    if status == 0:
        return
    lines = [line for line in stderr.splitlines() if line]
    reasons = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    reason = reasons[0] if reasons else (lines[-1] if lines else f"exit status {status}")
    if "NO_PUBKEY" in stderr:
        reason = "the archive's key is not known here: apt-get install debian-archive-keyring, as root"
    raise GuestError(f"apt cannot get Debian's packages: {reason}", tuple(lines[-20:]))
