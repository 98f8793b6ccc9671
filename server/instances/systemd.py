"""Instances as units of systemd: ``vgpud@UUID.socket`` and ``vgpud@UUID.service``, from the templates in ``systemd/``.

What differs from instance to instance is in a drop-in: the user that it runs as, one of its own, its share of the
CPUs, which the kernel's scheduler then sees to, and whether others may reach its metrics.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from server.instances.definition import Definition
from server.instances.errors import InstanceError
from server.instances.identity import user_name

SECONDS = 150.0
"""How long systemctl may take: more than a service that has to be killed and is started again, which is 120 s."""
UNITS = Path("/etc/systemd/system")
_DROP_IN = "50-vgpud.conf"
_FIXES = (
    (re.compile(r"not found|does not exist"), "; install vgpud@.service and vgpud@.socket first"),
    (
        re.compile(r"not been booted with systemd|Failed to connect to (system scope )?bus"),
        "; --manager direct does without",
    ),
)
"""What to do, by what systemctl says."""


class Systemd:
    """Starts and stops instances through ``systemctl``."""

    def __init__(self, units: Path | None = None) -> None:
        self._units = units or UNITS

    def defined(self, definition: Definition) -> None:
        """Write its drop-in, and where it is to start by itself have systemd listen for it from the next boot on."""
        try:
            self._write_drop_in(definition)
            if definition.auto:
                _systemctl("enable", _socket(definition.uuid))
        except InstanceError:
            with suppress(InstanceError):
                self._remove_drop_in(definition.uuid)
            raise

    def undefined(self, uuid: UUID) -> None:
        """Forget all that :meth:`defined` has set."""
        self._remove_drop_in(uuid)
        _systemctl("disable", _socket(uuid))
        _systemctl("daemon-reload")
        # systemd remembers units that failed. A pattern that matches none is no error, as the name of a unit would be.
        _systemctl("reset-failed", f"vgpud@{uuid}.*")

    def start(self, definition: Definition) -> None:
        """Start its service, and with it its socket; at boot, too, where its definition says so, and only there."""
        self._write_drop_in(definition)
        if _is_enabled(definition.uuid) != definition.auto:
            _systemctl("enable" if definition.auto else "disable", _socket(definition.uuid))
        _systemctl("start", _service(definition.uuid))

    def stop(self, uuid: UUID, *, force: bool) -> None:  # noqa: ARG002 - systemd kills by itself what does not end
        """Stop its socket, so that no client starts it again, and its service."""
        _systemctl("stop", _socket(uuid), _service(uuid))

    def _drop_in(self, uuid: UUID) -> Path:
        return self._units / f"{_service(uuid)}.d" / _DROP_IN

    def _write_drop_in(self, definition: Definition) -> None:
        path, text = self._drop_in(definition.uuid), drop_in(definition)
        try:
            if path.exists() and path.read_text() == text:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise InstanceError(f"{path}: cannot be written: {error.strerror}; be root") from error
        _systemctl("daemon-reload")

    def _remove_drop_in(self, uuid: UUID) -> None:
        path = self._drop_in(uuid)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InstanceError(f"{path}: cannot be removed: {error.strerror}; be root") from error
        with suppress(OSError):  # somebody else has drop-ins there, too
            path.parent.rmdir()


def drop_in(definition: Definition) -> str:
    """What the instance's service has beside what the template says."""
    # The template's folder is for nobody else; with x, who knows the name of the socket for Prometheus reaches it.
    folder = "RuntimeDirectoryMode=0711\n" if definition.metrics else ""
    return (
        f"# Of {definition.type.name}, by 'vgpud define' and 'vgpud start', which overwrite it.\n"
        "[Service]\n"
        f"User={user_name(definition.uuid)}\n"
        f"CPUWeight={definition.type.cpu_weight}\n"
        f"{folder}"
    )


def _socket(uuid: UUID) -> str:
    return f"vgpud@{uuid}.socket"


def _service(uuid: UUID) -> str:
    return f"vgpud@{uuid}.service"


def _is_enabled(uuid: UUID) -> bool:
    """Whether its socket listens from the boot on; no where the unit is not installed, which starting it tells."""
    return _run("is-enabled", _socket(uuid)).returncode == 0


def _systemctl(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        hint = next((fix for pattern, fix in _FIXES if pattern.search(reason)), "")
        raise InstanceError(f"{_said(arguments)}: {reason}{hint}")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", "--no-ask-password", *arguments]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise InstanceError(
            f"{_said(arguments)}: systemctl is not on the PATH; --manager direct does without"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise InstanceError(
            f"{_said(arguments)}: nothing in {SECONDS:.0f} s; 'systemctl list-jobs' says why"
        ) from error


def _said(arguments: Sequence[str]) -> str:
    return " ".join(["systemctl", *arguments])
