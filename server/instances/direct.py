"""Instances without systemd: a detached process each, which is found by the file that it has locked."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from server.child_server.errors import ServerStartError
from server.child_server.output import ServerOutput
from server.child_server.poll import readable
from server.child_server.readiness import (
    START_SECONDS,
    Outcome,
    Readiness,
    listen_for_readiness,
    why_not_ready,
)
from server.instances.definition import Definition
from server.instances.errors import AlreadyRunningError, InstanceError
from server.instances.pid_file import holder, locked
from server.instances.places import Places, make_private_folder
from server.instances.signals import NoticedSignals, noticed
from server.instances.state import listening_paths

STOP_SECONDS = 30.0
"""How long a server may take to end."""
KILL_SECONDS = 60.0
"""How long the kernel may take to end one that was killed."""
MAX_LOG = 16 << 20
"""Bytes of a server's log: what would be more is lost, because clients can cause lines without end."""
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Direct:
    """Starts and stops instances as processes of this user."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def defined(self, definition: Definition) -> None:
        """Nothing to do: ``vgpud start --auto`` looks at the definitions."""

    def undefined(self, uuid: UUID) -> None:
        """Nothing to do."""

    def start(self, definition: Definition) -> None:
        """Start its server, and return when it listens. Raises InstanceError with the server's reason.

        Whatever ends this before, a signal among it, ends the server, too.
        """
        uuid = definition.uuid
        log = self._places.log(uuid)
        make_private_folder(self._places.folder(uuid))
        with (
            noticed() as signals,
            _readiness() as readiness,
            _log_of_attempt(self._places, uuid) as attempt,
            _output(attempt, log) as output,
        ):
            process = _spawn(self._places, uuid, output, readiness)
            try:
                _limit_log(process.pid)
                _wait_until_ready(process, readiness, signals, output, log)
                _keep(attempt, log)
            except BaseException:
                process.kill()
                process.wait()
                with suppress(InstanceError):  # why it does not start is the reason to give
                    self._clear(uuid)
                raise
        process.returncode = 0  # it is to outlive this process: nobody waits for it

    def stop(self, uuid: UUID, *, force: bool) -> None:
        """End its server with SIGTERM, or, if that does not help and ``force`` is set, with SIGKILL.

        What a server leaves that could not clean up is removed, also where it has ended before.
        """
        pidfd = _open_process(self._places.pid_file(uuid))
        if pidfd is not None:
            self._end(pidfd, uuid, force=force)
        self._clear(uuid)

    def _end(self, pidfd: int, uuid: UUID, *, force: bool) -> None:
        """Closes ``pidfd``."""
        try:
            _signal(pidfd, signal.SIGTERM)
            if readable([pidfd], STOP_SECONDS):
                return
            if not force:
                raise InstanceError(f"{uuid} did not end in {STOP_SECONDS:.0f} s; --force kills it")
            _signal(pidfd, signal.SIGKILL)
            if not readable([pidfd], KILL_SECONDS):
                raise InstanceError(
                    f"{uuid} was killed and has not ended in {KILL_SECONDS:.0f} s: it hangs in the kernel"
                )
        finally:
            os.close(pidfd)

    def _clear(self, uuid: UUID) -> None:
        """Remove the sockets of a server that has ended, unless there is another by now. Raises InstanceError."""
        places = self._places
        if not places.folder(uuid).is_dir():
            return
        with suppress(AlreadyRunningError), locked(places.pid_file(uuid)):
            places.control(uuid).unlink(missing_ok=True)
            places.metrics(uuid).unlink(missing_ok=True)
            if str(places.socket(uuid)) not in listening_paths():  # systemd may have it
                places.socket(uuid).unlink(missing_ok=True)


@contextmanager
def _readiness() -> Iterator[Readiness]:
    """Raises InstanceError."""
    try:
        with TemporaryDirectory(prefix="vgpud-") as folder, listen_for_readiness(Path(folder)) as readiness:
            yield readiness
    except ServerStartError as error:
        raise InstanceError(error) from error


@contextmanager
def _log_of_attempt(places: Places, uuid: UUID) -> Iterator[Path]:
    """The log of a server that is to be started. It becomes the instance's log, unless somebody else has started it."""
    log = places.log(uuid)
    attempt = log.with_name(f"{log.name}.{secrets.token_hex(4)}")
    try:
        yield attempt
    finally:
        if attempt.exists():
            with suppress(InstanceError):
                if holder(places.pid_file(uuid)) is None:
                    _keep(attempt, log)
        attempt.unlink(missing_ok=True)


def _keep(attempt: Path, log: Path) -> None:
    """Raises InstanceError."""
    try:
        attempt.rename(log)
    except OSError as error:
        raise InstanceError(f"{log}: {error.strerror}; remove it") from error


@contextmanager
def _output(attempt: Path, log: Path) -> Iterator[ServerOutput]:
    """Raises InstanceError."""
    try:
        fd = os.open(attempt, _CREATE, 0o600)
    except OSError as error:
        raise InstanceError(f"{log}: {error.strerror}; remove it") from error
    try:
        yield ServerOutput(fd, fd, 0)
    finally:
        os.close(fd)


def _spawn(places: Places, uuid: UUID, output: ServerOutput, readiness: Readiness) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "server", "serve-instance", str(uuid)]
    folders = ["--config-dir", str(places.definitions), "--runtime-dir", str(places.runtime)]
    try:
        return subprocess.Popen(
            [*command, *folders],
            cwd="/",
            env={**os.environ, "NOTIFY_SOCKET": readiness.address},
            stdin=subprocess.DEVNULL,
            stdout=output.write_fd,
            stderr=output.write_fd,
            start_new_session=True,
        )
    except OSError as error:
        raise InstanceError(f"the server cannot be started: {error.strerror}") from error


def _limit_log(pid: int) -> None:
    """Bound what a process writes to a file; less than :data:`MAX_LOG` where it may not write as much anyway.

    Raises InstanceError.
    """
    try:
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        limit = min([MAX_LOG, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
    except ProcessLookupError:
        pass  # it has ended, for a reason that is still to be read
    except (OSError, ValueError) as error:
        raise InstanceError(f"the server's log cannot be bounded: {error}") from error


def _wait_until_ready(
    process: subprocess.Popen[bytes],
    readiness: Readiness,
    signals: NoticedSignals,
    output: ServerOutput,
    log: Path,
) -> None:
    pidfd = os.pidfd_open(process.pid)
    try:
        outcome = readiness.wait_without_loop(pidfd, signals.fileno(), START_SECONDS)
    finally:
        os.close(pidfd)
    if outcome is Outcome.INTERRUPTED:
        raise InstanceError("interrupted")
    if outcome is Outcome.LATE:
        raise InstanceError(f"the server does not listen after {START_SECONDS:.0f} s; its log is {log}")
    if outcome is Outcome.ENDED:
        raise InstanceError(why_not_ready(outcome, output.last_line()))


def _open_process(pid_file: Path) -> int | None:
    """A pidfd of the process that has the file locked, None if there is none.

    The fd is opened before the second look: who has the lock then is whom the fd means, and not somebody who has got
    the number of one that ended.
    """
    while (pid := holder(pid_file)) is not None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if holder(pid_file) == pid:
            return pidfd
        os.close(pidfd)
    return None


def _signal(pidfd: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
