"""A program that vgpud run takes for a QEMU: it tells the test what happens to it, and does what the test says."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

SECONDS = 120
_ADDRESS = "FAKE_QEMU"

_PROGRAM = f"""\
#!{sys.executable}
import json, os, signal, socket, sys

arguments = sys.argv[1:]
answers = {{
    ("--version",): "QEMU emulator version 11.0.0",
    ("-device", "help"): 'name "vfio-user-pci", bus PCI',
    ("-drive", "format=help"): "Supported formats (read-only): raw vdi",
}}
if tuple(arguments) in answers:
    print(answers[tuple(arguments)])
    sys.exit()
if arguments[-2:] == ["-L", "help"]:
    print(os.path.dirname(sys.argv[0]), *arguments[1:-2:2], sep="\\n")
    sys.exit()

test = socket.socket(socket.AF_UNIX)
test.connect(os.environ["{_ADDRESS}"])
stop = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
ends_at = set()
gpus = []

def say(**facts):
    test.sendall(json.dumps(facts).encode() + b"\\n")

def signalled(number, frame):
    say(signal=number)
    if number in ends_at:
        os._exit(0)

ignored = [number for number in stop if signal.getsignal(number) is signal.SIG_IGN]
blocked = list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
for number in set(stop) - set(ignored):
    signal.signal(number, signalled)
say(pid=os.getpid(), arguments=arguments, ignored=ignored, blocked=blocked)
for line in test.makefile():
    command, *words = json.loads(line)
    if command == "exit":
        os._exit(*words)
    elif command == "die":
        if words[0] != signal.SIGKILL:
            signal.signal(words[0], signal.SIG_DFL)
        os.kill(os.getpid(), words[0])
    elif command == "end at":
        ends_at.update(words)
        say(ok=True)
    elif command == "echo":
        print(sys.stdin.readline().upper(), end="", flush=True)
        print("complaint", file=sys.stderr, flush=True)
        say(ok=True)
    elif command == "fds":
        say(open=[fd for fd in words if os.path.exists(f"/proc/self/fd/{{fd}}")])
    elif command == "send":
        gpu = socket.socket(socket.AF_UNIX)
        gpus.append(gpu)
        gpu.connect(words[0])
        gpu.sendall(bytes.fromhex(words[1]))
        say(reply=gpu.recv(4096).hex())
    elif command == "leave":
        gpus.pop().close()
        say(ok=True)
"""


def make_fake_qemu(folder: Path) -> Path:
    """Write the program."""
    program = folder / "qemu-system-x86_64"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    return program


class FakeQemu:
    """The test's end of a fake that runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("rw")
        started = self.hears()
        self.pid: int = started["pid"]
        self.arguments: list[str] = started["arguments"]
        self.ignored: list[int] = started["ignored"]
        self.blocked: list[int] = started["blocked"]
        self.pidfd = os.pidfd_open(self.pid)

    def hears(self) -> Any:
        """What the fake says next; None at its end."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def does(self, *command: object) -> None:
        """Tell it to do something."""
        self._lines.write(json.dumps(command) + "\n")
        self._lines.flush()

    def asked(self, *command: object) -> Any:
        """Tell it to do something, and return what it says."""
        self.does(*command)
        return self.hears()

    @property
    def gpu_sockets(self) -> list[str]:
        """Where the servers of its GPUs are."""
        devices = [
            json.loads(word) for word in self.arguments if word.startswith('{"driver": "vfio-user-pci"')
        ]
        return [device["socket"]["path"] for device in devices]

    def close(self) -> None:
        """Let go of it."""
        self._lines.close()
        os.close(self.pidfd)


@dataclass(frozen=True)
class Running:
    """``vgpud run`` with a fake QEMU, and the servers that it has started."""

    run: subprocess.Popen[str]
    qemu: FakeQemu
    server_pids: tuple[int, ...]
    server_pidfds: tuple[int, ...]

    def ended(self) -> tuple[int, str, str]:
        """Wait until nothing is left; the exit status, and what was printed where."""
        out, said = self.run.communicate(timeout=SECONDS)
        self.until_nothing_runs()
        return self.run.returncode, out, said

    def until_nothing_runs(self) -> None:
        """Wait until QEMU and the servers are gone."""
        for pidfd in (self.qemu.pidfd, *self.server_pidfds):
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(SECONDS * 1000), "a process is left"


class Launcher:
    """Starts ``vgpud run``; temporary files are where the test can look for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.qemu = make_fake_qemu(folder)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "test"))
        self._listener.listen()
        self._listener.settimeout(SECONDS)

    def command(self, *options: str, qemu: Sequence[str] = ()) -> list[str]:
        return [sys.executable, "-m", "server", "run", *options, "--", str(self.qemu), *qemu]

    def environment(self) -> dict[str, str]:
        return {**os.environ, _ADDRESS: str(self.folder / "test"), "TMPDIR": str(self.temporary)}

    def start(
        self,
        *options: str,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        variables: Mapping[str, str] = MappingProxyType({}),
        **others: Any,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*options),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment(), **variables},
            **others,
        )

    @contextmanager
    def running(self, *options: str, **others: Any) -> Iterator[Running]:
        """A guest that has been started; all of it is gone behind the block."""
        with self.start(*options, **others) as run:
            running = self.adopt(run)
            try:
                yield running
            finally:
                for pid in (run.pid, running.qemu.pid, *running.server_pids):
                    if run.poll() is None:
                        with suppress(ProcessLookupError):
                            os.kill(pid, 9)
                for pidfd in running.server_pidfds:
                    os.close(pidfd)
                running.qemu.close()

    def adopt(self, run: subprocess.Popen[str]) -> Running:
        """Wait until ``run`` has started the fake."""
        with self.accept() as connection:
            qemu = FakeQemu(connection)
        servers = tuple(pid for pid in children(run.pid) if pid != qemu.pid)
        return Running(run, qemu, servers, tuple(os.pidfd_open(pid) for pid in servers))

    def accept(self) -> socket.socket:
        """Wait for a process to connect to the test."""
        connection, _ = self._listener.accept()
        connection.settimeout(SECONDS)
        return connection

    def close(self) -> None:
        self._listener.close()


def children(pid: int) -> list[int]:
    """The child processes of a process without threads (proc_pid_task_tid_children(5))."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
