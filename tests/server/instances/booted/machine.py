"""A machine that runs systemd: the real one as PID 1, in namespaces that end with the test.

    with booted() as machine:
        install(machine)
        machine.well("vgpud", "types")

Needs root. What is inside is seen from outside below ``/proc/PID/root``, sockets included.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.docs.documents import blocks
from tests.server.instances.booted.root import ROOT, WHEELS, lower_folders

SECONDS = 180.0
SOURCE = Path("/source")
_SUPERVISOR = Path(__file__).with_name("machine.sh")
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": str(WHEELS),
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Machine:
    """Boots when it is told to, and again, with the files that it had; see :func:`booted`."""

    def __init__(self, folder: Path, name: str, supervisor: subprocess.Popen[bytes]) -> None:
        self.folder, self.name = folder, name
        self.pid = 0
        """That of its PID 1, outside."""
        self._supervisor = supervisor

    def boot(self) -> None:
        """Boot it, after a power cut if it runs, and wait until it says that it has started all that it starts."""
        path = self.folder / "shared" / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(path))
            told.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            told.settimeout(0.1)
            assert self._supervisor.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, and its log says why
                self._supervisor.stdin.write(b"boot\n")
                self._supervisor.stdin.flush()
            self.pid = self._sender_of_ready(told)
        path.unlink()  # else PID 1 waits at a later message for somebody to read it

    def _sender_of_ready(self, told: socket.socket) -> int:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                message, ancillary, _, _ = told.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except TimeoutError:
                if self._supervisor.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()) from None
                continue
            ((_, _, credentials),) = ancillary
            pid: int = _CREDENTIALS.unpack(credentials)[0]
            if b"READY=1" in message and pid != self.pid:
                return pid

    def path(self, inside: Path | str) -> Path:
        """Where a file of the machine is for us."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, *command: str) -> Result:
        """Run a command in it as root."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_ENVIRONMENT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def well(self, *command: str) -> str:
        """What a command prints that succeeds."""
        result = self.run(*command)
        assert result == Result(0, result.out, ""), (command, result, self.run("journalctl", "-n", "50").out)
        return result.out

    def instances(self, *options: str) -> dict[str, dict[str, Any]]:
        """What ``vgpud list`` says, by UUID."""
        return {one["uuid"]: one for one in json.loads(self.well("vgpud", "list", "--json", *options))}

    def unit(self, name: str) -> dict[str, str]:
        """What systemd knows of a unit."""
        lines = self.well("systemctl", "show", name).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def cgroup(self, unit: str, controller: str = "unified") -> Path:
        """The folder of a unit's cgroup in the unified hierarchy, or in the older one of a controller."""
        hierarchies = self.path("/sys/fs/cgroup")
        hierarchy = hierarchies / controller if (hierarchies / controller).is_dir() else hierarchies
        return hierarchy / self.unit(unit)["ControlGroup"].lstrip("/")

    def pids(self, unit: str) -> list[int]:
        """The processes of a unit, by the numbers that they have for us."""
        return [int(pid) for pid in (self.cgroup(unit) / "cgroup.procs").read_text().split()]


@contextmanager
def booted() -> Iterator[Machine]:
    """A machine that has booted. All its processes, mounts, files and cgroups are gone afterwards, whatever happens."""
    lower = ":".join(map(str, lower_folders()))
    name = f"vgpud-test-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder_name:
        folder = Path(folder_name)
        for part in ("shared", "work"):
            (folder / part).mkdir()
        with (folder / "log").open("wb") as log:
            supervisor = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--propagation=private",
                    _SUPERVISOR,
                    "supervise",
                    lower,
                    folder,
                    name,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # what is typed at the terminal is for the tests
            )
        machine = Machine(folder, name, supervisor)
        try:
            machine.boot()
            yield machine
        finally:
            supervisor.communicate(timeout=SECONDS)


def install(machine: Machine) -> None:
    """Install the program and its units, word for word as docs/instances.md says."""
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(ROOT, machine.path(SOURCE), ignore=ignored)
    documented = (block.text for block in blocks(ROOT / "docs" / "instances.md") if block.language == "sh")
    (commands,) = (text for text in documented if "daemon-reload" in text)
    done = machine.run("sh", "-euc", f'sudo() {{ "$@"; }}; cd {SOURCE}\n{commands}')
    assert done.status == 0, done
