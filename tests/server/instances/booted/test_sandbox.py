"""What systemd keeps a server from, and the share of the CPUs that it gives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.instances.booted.instance import Instance, define
from tests.server.instances.booted.machine import Machine
from tests.server.instances.command import ONE, TWO

PROBE = """\
[Service]
Type=oneshot
ExecStart=
ExecStart=/usr/bin/python3 /run/probe.py {other} /run/vgpud/%i
StandardOutput=file:/run/probe.json
"""
OWN = "write its own folder"


@pytest.fixture
def other(machine: Machine) -> Instance:
    """An instance that another one could want to reach, and what else the probe looks for."""
    machine.path("/run/probe.py").write_text(Path(__file__).with_name("probe.py").read_text())
    machine.well("cp", "--archive", "/dev/zero", "/dev/some-device")
    machine.well("install", "-D", "-m", "644", "/etc/hostname", "/home/somebody/secret")
    machine.well("chmod", "777", "/srv")
    two = define(machine, TWO)
    two.vgpud("start")
    return two


def test_an_instance_can_do_nothing_but_write_its_own_folder(machine: Machine, other: Instance) -> None:
    one = define(machine, ONE)
    one.drop_in(PROBE.format(other=other.uuid))
    machine.well("systemctl", "start", one.service)
    outcomes = json.loads(machine.path("/run/probe.json").read_text())
    assert {what for what, outcome in outcomes.items() if outcome == "done"} == {OWN}, outcomes


def test_all_that_an_instance_cannot_do_can_be_done_outside_of_it(machine: Machine, other: Instance) -> None:
    said = machine.well("python3", "/run/probe.py", str(other.uuid), "/tmp")
    assert set(json.loads(said).values()) == {"done"}, said


def test_a_server_has_no_privilege_and_none_in_sight(machine: Machine, other: Instance) -> None:
    (pid,) = machine.pids(other.service)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
    assert "0" not in {*status["Uid"], *status["Gid"], *status["Groups"]}
    capabilities = {name: int(status[name][0], 16) for name in status if name.startswith("Cap")}
    assert len(capabilities) == 5
    assert not any(capabilities.values()), capabilities
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])  # SECCOMP_MODE_FILTER


def test_each_instance_has_a_user_and_namespaces_of_its_own(machine: Machine, other: Instance) -> None:
    one = define(machine, ONE)
    one.vgpud("start")
    processes = [machine.pid, *machine.pids(one.service), *machine.pids(other.service)]
    assert len(processes) == 3
    folders = [Path(f"/proc/{pid}") for pid in processes]
    assert len({folder.stat().st_uid for folder in folders}) == 3
    for kind in ("ipc", "mnt", "net", "user"):
        assert len({(folder / "ns" / kind).readlink() for folder in folders}) == 3, kind


def test_instances_get_cpu_time_by_the_weight_of_their_types(machine: Machine) -> None:
    weights = {ONE: 100, TWO: 400}
    at_the_kernel = []
    for uuid, weight in weights.items():
        instance = define(machine, uuid, f"vgpud-virtio-{weight // 100}")
        instance.vgpud("start")
        unit = machine.unit(instance.service)
        assert (unit["CPUWeight"], unit["Slice"]) == (str(weight), "vgpud.slice")
        at_the_kernel.append(weight_at_the_kernel(instance))
    assert at_the_kernel[1] == 4 * at_the_kernel[0]


def weight_at_the_kernel(instance: Instance) -> int:
    """In the unified hierarchy of cgroups, or in the older one of the CPU controller."""
    cgroup = instance.machine.cgroup(instance.service, "cpu")
    files = [path for path in map(cgroup.joinpath, ("cpu.weight", "cpu.shares")) if path.exists()]
    assert files, f"{cgroup} has no CPU controller: the machine around does not let its cgroups have it"
    return int(files[0].read_text())
