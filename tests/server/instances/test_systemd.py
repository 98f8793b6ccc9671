"""Instances through systemd: what ``systemctl`` is asked, and what is done where it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.instances import manager, places, systemd
from server.instances.definition import Definition
from server.instances.direct import Direct
from server.instances.manager import choose_manager
from server.instances.places import Places
from server.instances.store import Store
from server.instances.systemd import Systemd, drop_in
from server.instances.types import find_type
from tests.server.instances.command import ONE, Vgpud, held_by_another, listening


def base36(number: int) -> str:
    """As NumPy writes it, 25 digits."""
    return np.base_repr(number, 36).lower().zfill(25)


FAKE = """#!/bin/sh
printf '%s\\n' "$*" >>{folder}/asked
case "$2" in
enable) touch {folder}/enabled;;
disable) rm -f {folder}/enabled;;
is-enabled) test -e {folder}/enabled; exit;;
esac
case "$* " in *" $(cat {folder}/refused 2>/dev/null || echo nothing) "*) cat {folder}/reason >&2; exit 1;; esac
"""
SERVICE, SOCKET = f"vgpud@{ONE}.service", f"vgpud@{ONE}.socket"
LOOK = f"is-enabled {SOCKET}"
FORGET = f"reset-failed vgpud@{ONE}.*"
DEFINE = ["define", "--uuid", str(ONE), "--type", "vgpud-virtio-4", "--manager", "systemd"]
DROP_IN = (
    "# Of vgpud-virtio-4, by 'vgpud define' and 'vgpud start', which overwrite it.\n"
    "[Service]\n"
    f"User=vgpud-{base36(ONE.int)}\n"
    "CPUWeight=400\n"
)


class FakeSystemctl:
    def __init__(self, folder: Path) -> None:
        self.units = folder / "units"
        self._folder = folder
        program = folder / "bin" / "systemctl"
        program.parent.mkdir()
        program.write_text(FAKE.format(folder=folder))
        program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """What it was asked since the last time."""
        asked = self._folder / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        asked.unlink(missing_ok=True)
        assert all(line.startswith("--no-ask-password ") for line in lines)
        return [line.removeprefix("--no-ask-password ") for line in lines]

    def refuse(self, verb: str, reason: str) -> None:
        (self._folder / "refused").write_text(verb)
        (self._folder / "reason").write_text(reason)

    @property
    def drop_in(self) -> Path:
        return self.units / f"{SERVICE}.d" / "50-vgpud.conf"


@pytest.fixture
def systemctl(vgpud: Vgpud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystemctl]:
    """A system whose folders are those of the test."""
    fake = FakeSystemctl(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd, "UNITS", fake.units)
    monkeypatch.setattr(places, "SYSTEM_DEFINITIONS", vgpud.places.definitions)
    monkeypatch.setattr(places, "SYSTEM_RUNTIME", vgpud.places.runtime)
    yield fake
    assert fake.asked == []  # each test has said what it expects


def test_a_definition_becomes_a_drop_in_with_its_user_and_its_share(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    vgpud.well(*DEFINE)
    assert systemctl.asked == ["daemon-reload"]
    assert systemctl.drop_in.read_text() == DROP_IN
    assert drop_in(Store(vgpud.places.definitions).read(ONE)) == DROP_IN


def test_an_instance_that_starts_by_itself_has_its_socket_enabled(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    vgpud.well(*DEFINE, "--auto")
    assert systemctl.asked == ["daemon-reload", f"enable {SOCKET}"]


def test_an_instance_is_started_with_the_share_that_its_definition_has_now(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    vgpud.well(*DEFINE)
    systemctl.asked  # noqa: B018 - the reading of it is what forgets it
    assert vgpud.well("start", str(ONE), "--manager", "systemd") == f"{vgpud.places.socket(ONE)}\n"
    assert systemctl.asked == [LOOK, f"start {SERVICE}"]
    path = vgpud.places.definition(ONE)
    path.write_text(path.read_text().replace("virtio-4", "virtio-1"))
    vgpud.well("start", str(ONE), "--manager", "systemd")
    assert systemctl.asked == ["daemon-reload", LOOK, f"start {SERVICE}"]
    assert "CPUWeight=100\n" in systemctl.drop_in.read_text()


def test_an_instance_that_waits_for_its_first_client_can_be_started(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    vgpud.well(*DEFINE)
    with listening(vgpud.places.socket(ONE)):
        vgpud.well("start", str(ONE), "--manager", "systemd")
    assert systemctl.asked == ["daemon-reload", LOOK, f"start {SERVICE}"]


def test_a_definition_that_was_edited_says_from_its_next_start_whether_it_starts_by_itself(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    vgpud.well(*DEFINE)
    path = vgpud.places.definition(ONE)
    text = path.read_text()
    for start, verb in (("auto", "enable"), ("manual", "disable")):
        path.write_text(text.replace('"manual"', f'"{start}"'))
        systemctl.asked  # noqa: B018
        vgpud.well("start", str(ONE), "--manager", "systemd")
        assert systemctl.asked == [LOOK, f"{verb} {SOCKET}", f"start {SERVICE}"]
        vgpud.well("start", str(ONE), "--manager", "systemd")
        assert systemctl.asked == [LOOK, f"start {SERVICE}"]


def test_the_folder_of_an_instance_with_metrics_lets_others_pass_to_their_socket(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    vgpud.well(*DEFINE, "--metrics")
    assert systemctl.asked == ["daemon-reload"]
    assert systemctl.drop_in.read_text() == DROP_IN + "RuntimeDirectoryMode=0711\n"


@pytest.mark.parametrize(
    "reason",
    [
        "System has not been booted with systemd as init system (PID 1). Can't operate.\nFailed to connect to bus: X\n",
        "Failed to connect to bus: Host is down\n",
        "Failed to connect to system scope bus via local transport: Operation not permitted\n",
    ],
)
def test_where_systemd_does_not_run_the_way_without_is_named(
    vgpud: Vgpud, systemctl: FakeSystemctl, reason: str
) -> None:
    systemctl.refuse("daemon-reload", reason)
    assert vgpud.refusal(*DEFINE).endswith("; --manager direct does without\n")
    assert systemctl.asked == ["daemon-reload"]
    assert list(systemctl.units.iterdir()) == []


def test_an_instance_is_stopped_with_its_socket_first(vgpud: Vgpud, systemctl: FakeSystemctl) -> None:
    """Else the next client would start it again."""
    with listening(vgpud.places.socket(ONE)):
        vgpud.well("stop", str(ONE), "--manager", "systemd")
    assert systemctl.asked == [f"stop {SOCKET} {SERVICE}"]


def test_an_instance_that_systemd_did_not_start_is_not_said_to_be_stopped(
    vgpud: Vgpud, systemctl: FakeSystemctl
) -> None:
    with held_by_another(vgpud.places.pid_file(ONE)) as pid:
        says = vgpud.refusal("stop", str(ONE), "--manager", "systemd", "--force")
    assert f"{ONE} runs on as process {pid}: another --manager has started it" in says
    assert systemctl.asked == [f"stop {SOCKET} {SERVICE}"]


def test_nothing_is_left_of_an_instance_that_is_undefined(vgpud: Vgpud, systemctl: FakeSystemctl) -> None:
    vgpud.well(*DEFINE, "--auto")
    systemctl.asked  # noqa: B018
    vgpud.well("undefine", str(ONE), "--manager", "systemd")
    assert systemctl.asked == [f"disable {SOCKET}", "daemon-reload", FORGET]
    assert list(systemctl.units.iterdir()) == []


def test_other_drop_ins_of_an_instance_are_somebody_elses(vgpud: Vgpud, systemctl: FakeSystemctl) -> None:
    vgpud.well(*DEFINE)
    other = systemctl.drop_in.with_name("override.conf")
    other.write_text("[Service]\nNice=5\n")
    vgpud.well("undefine", str(ONE), "--manager", "systemd")
    assert list(systemctl.drop_in.parent.iterdir()) == [other]
    assert systemctl.asked == ["daemon-reload", f"disable {SOCKET}", "daemon-reload", FORGET]


def test_a_definition_that_systemd_refuses_is_undone(vgpud: Vgpud, systemctl: FakeSystemctl) -> None:
    systemctl.refuse("enable", "Failed to enable unit: Unit file vgpud@.socket does not exist.\n")
    says = vgpud.refusal(*DEFINE, "--auto")
    assert says == (
        f"vgpud: systemctl enable {SOCKET}: Failed to enable unit: Unit file vgpud@.socket does not exist.; "
        "install vgpud@.service and vgpud@.socket first\n"
    )
    assert systemctl.asked == ["daemon-reload", f"enable {SOCKET}"]
    assert vgpud.instances("--defined") == {}
    assert list(systemctl.units.iterdir()) == []


def test_the_reason_of_systemd_is_one_line(vgpud: Vgpud, systemctl: FakeSystemctl) -> None:
    vgpud.well(*DEFINE)
    systemctl.refuse("start", 'Job failed.\nSee "systemctl status" for details.\n')
    says = vgpud.refusal("start", str(ONE), "--manager", "systemd")
    assert says == f'vgpud: systemctl start {SERVICE}: Job failed. See "systemctl status" for details.\n'
    assert systemctl.asked == ["daemon-reload", LOOK, f"start {SERVICE}"]


def test_a_systemctl_that_hangs_is_not_waited_for(
    vgpud: Vgpud, systemctl: FakeSystemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vgpud.well(*DEFINE)
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    monkeypatch.setattr(systemd, "SECONDS", 0.1)
    says = vgpud.refusal("start", str(ONE), "--manager", "systemd")
    assert f"systemctl is-enabled {SOCKET}: nothing in 0 s; 'systemctl list-jobs' says why" in says
    assert systemctl.asked == ["daemon-reload"]


def test_a_system_without_systemctl_is_told_what_does_without(
    vgpud: Vgpud, systemctl: FakeSystemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "systemctl is not on the PATH; --manager direct does without" in vgpud.refusal(*DEFINE)
    assert vgpud.instances("--defined") == {}


def test_a_drop_in_that_cannot_be_written_is_one_line(
    vgpud: Vgpud, systemctl: FakeSystemctl, tmp_path: Path
) -> None:
    systemctl.units.touch()
    assert "50-vgpud.conf: cannot be written: " in vgpud.refusal(*DEFINE)
    assert vgpud.instances("--defined") == {}


@pytest.mark.parametrize(
    ("name", "uid", "booted", "system", "chosen"),
    [
        ("auto", 0, True, True, Systemd),
        ("auto", 0, False, True, Direct),
        ("auto", 1000, True, True, Direct),
        ("auto", 0, True, False, Direct),
        ("direct", 0, True, True, Direct),
        ("systemd", 0, False, True, Systemd),
    ],
)
def test_systemd_is_for_root_where_it_runs_and_for_the_folders_of_its_units(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    uid: int,
    booted: bool,
    system: bool,
    chosen: type,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(manager, "BOOTED", tmp_path if booted else tmp_path / "none")
    folders = Places(places.SYSTEM_DEFINITIONS if system else tmp_path, places.SYSTEM_RUNTIME)
    assert type(choose_manager(name, folders)) is chosen


def test_two_instances_have_two_users_however_alike_their_uuids() -> None:
    alike = [Definition(type(ONE)(int=ONE.int + number), find_type("vgpud-virtio-1")) for number in range(2)]
    users = {line for each in alike for line in drop_in(each).splitlines() if line.startswith("User=")}
    assert len(users) == 2
