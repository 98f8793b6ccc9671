"""A built container image without a container engine: its root file system, entered as an engine enters one."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 900
SECONDS = 120
SHARED = "/run/vgpud"
"""Where a container has the folder that it shares with the host."""

# As `docker run --network none --read-only --volume SHARED:/run/vgpud`: its mounts are seen by nobody else, and are
# gone with its processes. That the process dies with its parent is said last, because a change of user undoes it.
_ENTER = """
root=$1 shared=$2 user=$3
shift 3
mount --bind "$root" "$root"
mount --bind "$shared" "$root/run/vgpud"
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid="$user" --regid="$user" --init-groups --pdeathsig=KILL env -i "$@"
"""
_NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system, and what the image's configuration says of running it."""

    root: Path
    user: str
    environment: tuple[str, ...]
    entry_point: tuple[str, ...]
    command: tuple[str, ...]
    health_check: tuple[str, ...]

    def entering(self, shared: Path, *command: str, environment: tuple[str, ...] = ()) -> list[str]:
        """Return the command line that runs ``command`` in a container that shares the folder ``shared``."""
        arguments = (str(self.root), str(shared), self.user, *self.environment, *environment, *command)
        return [*_NAMESPACES, "sh", "-euc", _ENTER, "sh", *arguments]

    def run(self, shared: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in a container of its own."""
        return subprocess.run(
            self.entering(shared, *command), capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def share(self, folder: Path) -> Path:
        """Make ``folder``, where the container's user may make sockets."""
        folder.mkdir()
        users = (line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines())
        ((uid, gid),) = [(int(fields[2]), int(fields[3])) for fields in users if fields[0] == self.user]
        os.chown(folder, uid, gid)
        return folder


def build_image(folder: Path) -> Image:
    """Build the Dockerfile with ``scripts/build-container.sh`` into ``folder``."""
    done = subprocess.run(
        [ROOT / "scripts/build-container.sh", folder],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "image.json").read_text())
    kind, *health_check = config["Healthcheck"]["Test"]
    assert kind == "CMD"
    return Image(
        root=Path(done.stdout.strip()),
        user=config["User"],
        environment=tuple(config["Env"]),
        entry_point=tuple(config["Entrypoint"]),
        command=tuple(config["Cmd"]),
        health_check=tuple(health_check),
    )


@dataclass(frozen=True, slots=True)
class Container:
    """A running container that serves in ``shared``."""

    image: Image
    shared: Path
    process: subprocess.Popen[str]

    @property
    def device(self) -> Path:
        """The socket for QEMU, as the host sees it."""
        return self.shared / "device.sock"

    def server_pid(self) -> int:
        """The process that listens on the control socket, by its number on the host."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.shared / "control.sock"))
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    def stop(self) -> tuple[int, str]:
        """Stop the server as `docker stop` does; returns its exit status and what it logged."""
        os.kill(self.server_pid(), signal.SIGTERM)
        _, log = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, log


@contextmanager
def running(image: Image, shared: Path, *arguments: str) -> Iterator[Container]:
    """Run the image's entry point with its own command and ``arguments``, from when it has said it is ready."""
    told = shared / "ready.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(told))
        manager.settimeout(SECONDS)
        told.chmod(0o777)
        command = image.entering(
            shared,
            *image.entry_point,
            *image.command,
            *arguments,
            environment=(f"NOTIFY_SOCKET={SHARED}/{told.name}",),
        )
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            try:
                assert manager.recv(100) == b"READY=1"
            except TimeoutError:
                process.kill()
                raise AssertionError(process.communicate()[1]) from None
            yield Container(image, shared, process)
        finally:
            process.kill()
            process.communicate()
            told.unlink()
