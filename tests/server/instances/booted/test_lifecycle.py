"""An instance from its definition to its end, with systemd as it is installed."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from pathlib import Path

import trio

from server.client import open_client
from tests.server.instances.booted.instance import Instance, check_device, define
from tests.server.instances.booted.machine import SECONDS, Machine
from tests.server.instances.command import ONE, TWO

HOLD = """
import socket
with socket.socket(socket.AF_UNIX) as test:
    test.connect("/run/hold/test.sock")
    test.recv(1)
"""
EMPTY_FOLDERS = {"/etc/vgpud", "/etc/vgpud/instances.d", "/run/vgpud"}
"""What is left when the last instance is undefined."""


def files(machine: Machine) -> set[str]:
    """All that is not of the journal, which grows by itself."""
    folders = ("/etc", "/run", "/tmp", "/var")
    others = ("-path", "*/log/journal/*", "-o", "-print")
    found = machine.well("find", *folders, "-ignore_readdir_race", *others)
    return set(found.splitlines())


def units(machine: Machine) -> str:
    """The units of instances that systemd knows of, failed ones included."""
    return machine.well("systemctl", "list-units", "--all", "--plain", "--no-legend", "vgpud@*")


def parent(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "PPid:" in line)
    return int(line.split()[1])


async def test_systemd_runs_an_instance_on_which_a_client_finds_the_device(machine: Machine) -> None:
    one = define(machine, ONE)
    assert one.vgpud("start") == f"/run/vgpud/{ONE}.sock\n"
    await one.shows_its_device()
    (pid,) = machine.pids(one.service)
    assert parent(pid) == machine.pid


async def test_the_program_and_systemd_agree_on_what_an_instance_does(machine: Machine) -> None:
    one = define(machine, ONE)
    assert one.states == ("stopped", "inactive")
    one.vgpud("start")
    assert one.states == ("running", "active")
    with trio.fail_after(SECONDS):
        async with open_client(one.socket) as client:
            await check_device(client)
            listed = machine.instances()[str(ONE)]
    assert listed["client_attached"]
    assert str(listed["pid"]) == machine.unit(one.service)["MainPID"]
    assert f"Main PID: {listed['pid']} (vgpud)" in machine.well("systemctl", "status", one.service)
    one.vgpud("stop", "--force")
    assert one.states == ("stopped", "inactive")
    assert machine.run("systemctl", "status", one.service).status == 3  # as it is for all that do not run


def test_an_instance_is_active_from_when_it_answers_and_not_before(machine: Machine) -> None:
    one = define(machine, ONE)
    folder = machine.path("/run/hold")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOLD)  # which Python runs before all else
    one.drop_in("[Service]\nEnvironment=PYTHONPATH=/run/hold\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "test.sock"))
        (folder / "test.sock").chmod(0o777)
        listener.listen()
        listener.settimeout(SECONDS)
        machine.well("systemctl", "start", "--no-block", one.service)
        held, _ = listener.accept()
        with held:
            assert one.states == ("waiting", "activating")
    machine.well("systemctl", "start", one.service)  # which waits for the start that is under way
    assert one.states == ("running", "active")


async def test_a_killed_instance_stays_away_until_a_client_comes(machine: Machine) -> None:
    """Whoever was attached cannot go on with another server: Restart=no, and the socket listens on."""
    one = define(machine, ONE)
    one.vgpud("start")
    (pid,) = machine.pids(one.service)
    os.kill(pid, signal.SIGKILL)
    one.becomes("failed")
    assert machine.unit(one.service)["Result"] == "signal"
    assert one.states == ("waiting", "failed")
    assert not machine.path(f"/run/vgpud/{ONE}").exists()
    await one.shows_its_device()
    assert one.states == ("running", "active")
    assert machine.pids(one.service) != [pid]


async def test_an_instance_that_starts_by_itself_waits_for_its_first_client_after_a_boot(
    machine: Machine,
) -> None:
    one, two = define(machine, ONE, "vgpud-virtio-1", "--auto"), define(machine, TWO)
    machine.boot()
    assert one.states == ("waiting", "inactive")
    assert two.states == ("stopped", "inactive")
    await one.shows_its_device()
    assert one.states == ("running", "active")
    one.vgpud("stop")
    one.vgpud("undefine")
    machine.boot()
    assert machine.instances() == {}
    assert not one.socket.exists()


def test_the_socket_is_for_root_and_for_the_group_of_virtual_machines(machine: Machine) -> None:
    one = define(machine, ONE)
    one.vgpud("start")
    group = machine.well("getent", "group", "kvm").split(":")[2]
    facts = one.socket.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (0, int(group), 0o660)


def test_nothing_is_left_of_an_instance_that_was_stopped_and_undefined(machine: Machine) -> None:
    before = files(machine)
    one = define(machine, ONE, "vgpud-virtio-1", "--auto")
    one.vgpud("start")
    assert any(str(ONE) in path for path in files(machine) - before)
    check_that_nothing_is_left(one, before)


def test_nothing_is_left_of_an_instance_that_crashed(machine: Machine) -> None:
    before = files(machine)
    one = define(machine, ONE)
    one.vgpud("start")
    (pid,) = machine.pids(one.service)
    os.kill(pid, signal.SIGKILL)
    one.becomes("failed")
    check_that_nothing_is_left(one, before)


def check_that_nothing_is_left(one: Instance, before: set[str]) -> None:
    one.vgpud("stop")
    one.vgpud("undefine")
    # The journal forgets a service, and systemd empties its /tmp, a moment after it has ended.
    deadline = time.monotonic() + SECONDS
    while not (left := files(one.machine) - before) <= EMPTY_FOLDERS:
        assert time.monotonic() < deadline, left
    assert units(one.machine) == ""
    assert one.machine.well("systemctl", "is-system-running") == "running\n"
