"""The machine of the tests leaves nothing behind on the one that it runs on, and changes nothing there."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from tests.server.instances.booted.machine import booted

CGROUPS = Path("/sys/fs/cgroup")
FOLDERS = ("/tmp", "/run", "/etc", "/var")


class SomethingError(Exception):
    pass


def traces(name: str) -> list[str]:
    """Processes, mounts, cgroups and files of a machine that can be seen from here."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    cgroups = [folder for root, folders, _ in os.walk(CGROUPS) for folder in folders if folder == name]
    processes = [str(path) for path in Path("/proc").glob("[0-9]*/cgroup") if name in text_of(path)]
    return [*mounts, *cgroups, *processes, *map(str, Path(tempfile.gettempdir()).glob(f"{name}*"))]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_whatever_happens_nothing_is_left_of_a_machine() -> None:
    machines = []

    def boot_and_fail() -> None:
        with booted() as machine:
            machines.append(machine)
            assert machine.well("cat", "/proc/1/comm") == "systemd\n"
            assert machine.well("systemctl", "is-system-running") == "running\n"
            raise SomethingError

    with pytest.raises(SomethingError):
        boot_and_fail()
    (machine,) = machines
    assert traces(machine.name) == []
    assert not Path(f"/proc/{machine.pid}").exists()


def test_a_machine_that_runs_is_seen_by_its_processes_and_not_by_its_mounts() -> None:
    with booted() as machine:
        seen = traces(machine.name)
        assert f"/proc/{machine.pid}/cgroup" in seen
        assert str(machine.folder) in seen
        assert not any(" - " in trace for trace in seen)  # a line of mountinfo


def test_what_the_machine_does_to_its_files_and_its_name_is_not_seen_outside() -> None:
    with tempfile.NamedTemporaryFile() as in_tmp, tempfile.NamedTemporaryFile(dir="/run") as in_run:
        before = socket.gethostname()
        with booted() as machine:
            for outside in (in_tmp.name, in_run.name):
                assert not machine.path(outside).exists()
            machine.well("hostname", "another")
            machine.well("touch", f"{in_tmp.name}.inside", f"{in_run.name}.inside")
            machine.well("find", *FOLDERS, "-ignore_readdir_race", "-xdev", "-type", "f", "-delete")
            machine.boot()
        for outside in (in_tmp.name, in_run.name):
            assert Path(outside).exists()
            assert not Path(f"{outside}.inside").exists()
        assert socket.gethostname() == before
