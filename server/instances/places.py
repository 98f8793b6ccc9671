"""Where definitions, sockets and what else belongs to an instance are."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from server.instances.errors import InstanceError

SYSTEM_DEFINITIONS = Path("/etc/vgpud/instances.d")
SYSTEM_RUNTIME = Path("/run/vgpud")
"""The two folders of root, which are also what the units in ``systemd/`` say."""


@dataclass(frozen=True, slots=True)
class Places:
    """The folder of definitions, and that of sockets; both absolute."""

    definitions: Path
    runtime: Path

    @property
    def are_the_systems(self) -> bool:
        """Whether they are those of the systemd units."""
        return (self.definitions, self.runtime) == (SYSTEM_DEFINITIONS, SYSTEM_RUNTIME)

    def definition(self, uuid: UUID) -> Path:
        """The file that defines the instance."""
        return self.definitions / f"{uuid}.json"

    def socket(self, uuid: UUID) -> Path:
        """The socket for QEMU."""
        return self.runtime / f"{uuid}.sock"

    def folder(self, uuid: UUID) -> Path:
        """The folder of the running server, for nobody else."""
        return self.runtime / str(uuid)

    def control(self, uuid: UUID) -> Path:
        """The control socket."""
        return self.folder(uuid) / "control.sock"

    def metrics(self, uuid: UUID) -> Path:
        """The socket for Prometheus, of an instance that has metrics."""
        return self.folder(uuid) / "metrics.sock"

    def pid_file(self, uuid: UUID) -> Path:
        """The file that the running server has locked, with its pid."""
        return self.folder(uuid) / "pid"

    def log(self, uuid: UUID) -> Path:
        """The log of a server that was started without systemd."""
        return self.folder(uuid) / "log"


def choose_places(config_dir: Path | None, runtime_dir: Path | None, environ: Mapping[str, str]) -> Places:
    """The two folders that a command is about. Raises InstanceError."""
    definitions = choose_definitions(config_dir, environ)
    runtime = runtime_dir or (SYSTEM_RUNTIME if os.geteuid() == 0 else _users_runtime(environ))
    return Places(definitions, runtime.absolute())


def choose_definitions(config_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """The folder that the command line names, else root's, else the one of the XDG base directories."""
    if config_dir is not None:
        return config_dir.absolute()
    if os.geteuid() == 0:
        return SYSTEM_DEFINITIONS
    return (_base_directory(environ, "XDG_CONFIG_HOME") or Path.home() / ".config") / "vgpud" / "instances.d"


def _users_runtime(environ: Mapping[str, str]) -> Path:
    folder = _base_directory(environ, "XDG_RUNTIME_DIR")
    if folder is None:
        raise InstanceError("XDG_RUNTIME_DIR names no folder for sockets; set it or give --runtime-dir")
    return folder / "vgpud"


def _base_directory(environ: Mapping[str, str], name: str) -> Path | None:
    """The specification of base directories wants relative ones ignored."""
    folder = Path(environ.get(name, ""))
    return folder if folder.is_absolute() else None


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder that is ours where there is none. Raises InstanceError."""
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise InstanceError(
            f"{folder}: cannot be made: {error.strerror}; make it or choose another"
        ) from error


def make_private_folder(folder: Path) -> None:
    """Make a folder, or take one that is there, that nobody else can have put anything into. Raises InstanceError."""
    make_folder(folder.parent, 0o755 if os.geteuid() == 0 else 0o700)
    make_folder(folder, 0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise InstanceError(f"{folder}: not a folder of this user's alone; remove it")
