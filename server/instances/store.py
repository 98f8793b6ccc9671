"""The folder of definitions: a JSON file per instance, written as a whole or not at all, and read with suspicion."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from server.instances.definition import MAX_BYTES, Definition, decode, encode
from server.instances.errors import InstanceError
from server.instances.identity import canonical_uuid
from server.instances.places import make_folder

FILE_MODE = 0o644
"""The server reads its own definition, and runs as a user of its own under systemd. Nothing in it is secret."""
_OTHERS_MAY_WRITE = 0o022
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_SUFFIX = ".json"


class Store:
    """The definitions in ``folder``. Whatever cannot be done raises InstanceError, which names the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, uuid: UUID) -> Path:
        """The file of an instance."""
        return self.folder / f"{uuid}{_SUFFIX}"

    def uuids(self) -> list[UUID]:
        """The instances that are defined, well or not, in order."""
        with _named(self.folder):
            try:
                names = [path.name for path in self.folder.iterdir()]
            except FileNotFoundError:
                return []
        found = (canonical_uuid(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))
        return sorted(uuid for uuid in found if uuid is not None)

    def strangers(self) -> list[Path]:
        """JSON files that define nothing because of their names."""
        if not self.folder.is_dir():
            return []
        files = (path for path in self.folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))
        return sorted(path for path in files if canonical_uuid(path.stem) is None)

    def read(self, uuid: UUID) -> Definition:
        """The definition of an instance."""
        path = self.path(uuid)
        try:
            return decode(uuid, _content(path))
        except FileNotFoundError as error:
            raise InstanceError(f"{uuid} is not defined; 'vgpud list --defined' lists what is") from error
        except IsADirectoryError as error:
            raise InstanceError(f"{path}: a folder, which defines nothing; remove it") from error
        except OSError as error:
            raise InstanceError(
                f"{path}: cannot be read: {error.strerror}; 'vgpud undefine {uuid}'"
            ) from error
        except InstanceError as error:
            raise InstanceError(f"{path}: {error}; correct the file, or 'vgpud undefine {uuid}'") from error

    def add(self, definition: Definition) -> None:
        """Store a definition that is not there yet."""
        make_folder(self.folder, 0o755 if os.geteuid() == 0 else 0o700)
        path = self.path(definition.uuid)
        temporary = self.folder / f".{path.name}.{secrets.token_hex(8)}"
        with _named(path):
            try:
                _write(temporary, encode(definition))
                os.link(temporary, path)
            except FileExistsError as error:
                raise InstanceError(f"{definition.uuid} is defined already; undefine it first") from error
            finally:
                temporary.unlink(missing_ok=True)
            _sync(self.folder)

    def remove(self, uuid: UUID) -> None:
        """Remove a definition, whatever its file says."""
        path = self.path(uuid)
        with _named(path):
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise InstanceError(f"{uuid} is not defined; 'vgpud list --defined' lists what is") from error
            except (IsADirectoryError, PermissionError) as error:  # unlink(2) may say either of a folder
                if not path.is_dir():
                    raise
                raise InstanceError(f"{path}: a folder, which defines nothing; remove it") from error
            _sync(self.folder)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InstanceError(f"{path}: {error.strerror}") from error


def _content(path: Path) -> bytes:
    fd = os.open(path, _READ)
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise InstanceError("not a file")
        if facts.st_uid not in (0, os.geteuid()):
            raise InstanceError(f"belongs to user {facts.st_uid}")
        if facts.st_mode & _OTHERS_MAY_WRITE:
            raise InstanceError("others than its owner may write it (chmod go-w)")
        return file.read(MAX_BYTES + 1)


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, _CREATE, FILE_MODE), "wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)  # whatever the umask is
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
