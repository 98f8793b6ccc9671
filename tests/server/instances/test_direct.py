"""Real servers, each a process of its own, without systemd."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from server.child_server.output import ServerOutput
from server.child_server.readiness import Readiness
from server.cli import main
from server.instances import direct
from server.instances.direct import MAX_LOG
from server.instances.errors import InstanceError
from server.instances.pid_file import holder
from server.instances.places import Places
from tests.server.instances.command import ONE, THREE, TWO, Vgpud, attached, held_by_another, listening
from tests.server.metrics.test_serve_metrics import scrape
from tests.server.running import TRANSPORTS

on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


def pid_of(places: Places, uuid: UUID) -> int:
    pid = holder(places.pid_file(uuid))
    assert pid is not None
    return pid


def end(pid: int) -> None:
    """Kill a server as a crash does: it cleans up nothing."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@contextmanager
def no_room() -> Iterator[None]:
    """Files get no longer, as where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def define(vgpud: Vgpud, *more: str, uuid: UUID = ONE) -> str:
    return vgpud.well("define", "--uuid", str(uuid), "--type", "vgpud-virtio-1", *more).strip()


def sockets(places: Places) -> list[Path]:
    return [path for path in (places.socket(ONE), places.control(ONE)) if path.exists()]


@on_both_transports
def test_an_instance_is_started_used_and_stopped(vgpud: Vgpud, transport: str) -> None:
    define(vgpud, "--transport", transport)
    path = vgpud.places.socket(ONE)
    assert vgpud.well("start", str(ONE)) == f"{path}\n"
    assert vgpud.instances()[str(ONE)]["state"] == "running"
    with attached(path):
        seen = vgpud.instances()[str(ONE)]
        assert (seen["pid"], seen["client_attached"]) == (pid_of(vgpud.places, ONE), True)
    vgpud.well("stop", str(ONE), "--force")  # whether or not the server has noticed that the client is gone
    assert not path.exists()
    assert holder(vgpud.places.pid_file(ONE)) is None
    assert vgpud.instances() == {}
    assert vgpud.instances("--defined")[str(ONE)]["state"] == "stopped"


def test_what_serves_is_what_was_defined(vgpud: Vgpud) -> None:
    define(vgpud, "--transport", "libvfio-user", "--device", "virtio-gpu,edid=off")
    vgpud.well("start", str(ONE))
    command = Path(f"/proc/{pid_of(vgpud.places, ONE)}/cmdline").read_bytes().split(b"\0")
    assert command[command.index(b"serve-instance") + 1] == str(ONE).encode()
    assert "transport=libvfio-user" in vgpud.places.log(ONE).read_text()
    device = vgpud.instances()[str(ONE)]["device"]
    assert device == "virtio-gpu,scanouts=1,width=1280,height=800,max_hostmem=64M,edid=off"


def test_an_instance_with_metrics_is_scraped_at_its_socket(vgpud: Vgpud) -> None:
    define(vgpud, "--metrics")
    vgpud.well("start", str(ONE))
    with attached(vgpud.places.socket(ONE)), socket.socket(socket.AF_UNIX) as scraper:
        scraper.connect(vgpud.instances()[str(ONE)]["metrics"])
        assert 'vgpud_client_attached{device="virtio-gpu",transport="native"} 1\n' in scrape(scraper)
    assert vgpud.places.folder(ONE).stat().st_mode & 0o077 == 0
    vgpud.well("stop", str(ONE), "--force")
    assert not vgpud.places.metrics(ONE).exists()


def test_an_instance_is_asked_by_its_uuid(
    vgpud: Vgpud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    which = ["--uuid", str(ONE), "--runtime-dir", str(vgpud.places.runtime)]
    assert main(["status", *which, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pid"] == pid_of(vgpud.places, ONE)
    assert main(["display", *which, "--scanout", "0", "--size", "1024x768"]) == 0
    assert capsys.readouterr().out.startswith("scanout 0: connected, prefers 1024x768")
    assert main(["screenshot", *which, str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err == "vgpud: the guest shows nothing on scanout 0\n"


def test_three_instances_run_at_once_each_on_its_own_socket(vgpud: Vgpud) -> None:
    transports = {ONE: "native", TWO: "libvfio-user", THREE: "native"}
    for uuid, transport in transports.items():
        define(vgpud, "--transport", transport, uuid=uuid)
        vgpud.well("start", str(uuid))
    with attached(vgpud.places.socket(TWO)):
        seen = vgpud.instances()
        assert {uuid: entry["state"] for uuid, entry in seen.items()} == dict.fromkeys(
            map(str, transports), "running"
        )
        assert [entry["client_attached"] for entry in seen.values()] == [False, True, False]
        assert len({entry["pid"] for entry in seen.values()}) == 3
        assert [entry["socket"] for entry in seen.values()] == [
            str(vgpud.places.socket(uuid)) for uuid in transports
        ]
        vgpud.well("stop", str(ONE))
        assert set(vgpud.instances()) == {str(TWO), str(THREE)}


def test_a_server_outlives_who_started_it_and_their_terminal(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    pid = pid_of(vgpud.places, ONE)
    assert os.getsid(pid) == pid
    process, log = Path(f"/proc/{pid}"), vgpud.places.log(ONE)
    links = [(process / "fd" / str(fd)).readlink() for fd in (0, 1, 2)]
    assert links == [Path("/dev/null"), log, log]
    assert (process / "cwd").readlink() == Path("/")


def test_an_instance_runs_once(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    pid = pid_of(vgpud.places, ONE)
    assert f"is running already, as process {pid}" in vgpud.refusal("start", str(ONE))
    assert pid_of(vgpud.places, ONE) == pid


def test_of_two_who_start_it_one_is_refused(vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has seen that it does not run, and then it does."""
    define(vgpud)
    monkeypatch.setattr(
        "server.instances.commands._start", lambda manager, _, definition: manager.start(definition)
    )
    with held_by_another(vgpud.places.pid_file(ONE)) as pid:
        vgpud.places.folder(ONE).chmod(0o700)
        assert f"it is running already, as process {pid}" in vgpud.refusal("start", str(ONE))


def test_a_client_keeps_an_instance_from_being_stopped(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    with attached(vgpud.places.socket(ONE)) as client:
        assert "QEMU aborts without it; end that, or give --force" in vgpud.refusal("stop", str(ONE))
        assert vgpud.instances()[str(ONE)]["client_attached"] is True
        vgpud.well("stop", str(ONE), "--force")
        assert client.recv(1) == b""


def test_a_server_that_crashed_has_failed_and_starts_again_over_what_it_left(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    end(pid_of(vgpud.places, ONE))
    assert vgpud.places.socket(ONE).is_socket()
    assert vgpud.places.control(ONE).is_socket()
    assert vgpud.instances()[str(ONE)]["state"] == "failed"
    vgpud.well("start", str(ONE))
    assert vgpud.places.log(ONE).read_text().count("listening") == 1
    with attached(vgpud.places.socket(ONE)):
        assert vgpud.instances()[str(ONE)]["client_attached"] is True


def test_what_a_crashed_server_left_is_removed_by_stopping_it(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    end(pid_of(vgpud.places, ONE))
    vgpud.well("stop", str(ONE))
    assert not sockets(vgpud.places)
    assert vgpud.instances() == {}
    assert "is not running" in vgpud.refusal("stop", str(ONE))


def test_what_a_crashed_server_left_is_removed_where_the_disk_is_full(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    end(pid_of(vgpud.places, ONE))
    with no_room():
        vgpud.well("stop", str(ONE))
    assert not sockets(vgpud.places)


def test_a_definition_is_removed_where_the_disk_is_full(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    end(pid_of(vgpud.places, ONE))
    with no_room():
        vgpud.well("undefine", str(ONE))
    assert list(vgpud.places.runtime.iterdir()) == []


def test_what_is_left_and_cannot_be_removed_is_no_success(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    end(pid_of(vgpud.places, ONE))
    monkeypatch.setattr("server.instances.pid_file.fcntl.lockf", no_locks)
    says = vgpud.refusal("stop", str(ONE))
    assert says == f"vgpud: {vgpud.places.pid_file(ONE)}: No locks available\n"


def test_why_a_server_does_not_start_is_said_also_where_what_it_left_cannot_be_removed(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(vgpud)
    monkeypatch.setattr("server.instances.pid_file.fcntl.lockf", no_locks)
    with listening(vgpud.places.socket(ONE)):
        assert "another server is listening there" in vgpud.refusal("start", str(ONE))


def test_what_another_server_has_is_not_removed(vgpud: Vgpud) -> None:
    define(vgpud)
    with held_by_another(vgpud.places.pid_file(ONE)), listening(vgpud.places.control(ONE)):
        direct.Direct(vgpud.places)._clear(ONE)
        assert vgpud.places.control(ONE).is_socket()


def test_the_socket_for_metrics_of_a_crashed_server_is_removed(vgpud: Vgpud) -> None:
    define(vgpud, "--metrics")
    vgpud.well("start", str(ONE))
    assert vgpud.places.metrics(ONE).is_socket()
    end(pid_of(vgpud.places, ONE))
    vgpud.well("stop", str(ONE))
    assert not vgpud.places.metrics(ONE).exists()


def test_an_instance_that_failed_starts_by_itself(vgpud: Vgpud) -> None:
    define(vgpud, "--auto")
    vgpud.well("start", "--auto")
    end(pid_of(vgpud.places, ONE))
    assert vgpud.well("start", "--auto") == f"{vgpud.places.socket(ONE)}\n"


def test_a_socket_that_systemd_listens_at_is_not_a_leftover(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.places.folder(ONE).mkdir(parents=True)
    with listening(vgpud.places.socket(ONE)):
        direct.Direct(vgpud.places).stop(ONE, force=True)
        assert vgpud.places.socket(ONE).is_socket()


def test_a_number_that_a_crashed_server_left_is_nobody_who_is_stopped(vgpud: Vgpud) -> None:
    define(vgpud)
    with held_by_another(vgpud.places.definitions.parent / "bystander") as bystander:
        vgpud.places.folder(ONE).mkdir(parents=True)
        vgpud.places.pid_file(ONE).write_text(f"{bystander}\n")
        assert "is not running" in vgpud.refusal("stop", str(ONE), "--force")
        direct.Direct(vgpud.places).stop(ONE, force=True)
        assert holder(vgpud.places.definitions.parent / "bystander") == bystander


def test_what_a_crashed_server_left_goes_with_its_definition(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    end(pid_of(vgpud.places, ONE))
    vgpud.well("undefine", str(ONE))
    assert list(vgpud.places.runtime.iterdir()) == []
    assert list(vgpud.places.definitions.iterdir()) == []


def test_an_instance_that_runs_is_not_undefined(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    assert f"is running; 'vgpud stop {ONE}' first" in vgpud.refusal("undefine", str(ONE))
    assert vgpud.instances()[str(ONE)]["state"] == "running"


def test_a_server_that_hangs_is_silent_and_stopped_by_force_only(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.instances.state.ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(direct, "STOP_SECONDS", 0.1)
    define(vgpud)
    vgpud.well("start", str(ONE))
    pid = pid_of(vgpud.places, ONE)
    os.kill(pid, signal.SIGSTOP)
    seen = vgpud.instances()[str(ONE)]
    assert (seen["state"], seen["pid"], seen["client_attached"]) == ("silent", pid, None)
    assert "--force stops it anyway" in vgpud.refusal("stop", str(ONE))
    with pytest.raises(InstanceError, match="did not end in 0 s; --force kills it"):
        direct.Direct(vgpud.places).stop(ONE, force=False)
    assert pid_of(vgpud.places, ONE) == pid
    vgpud.well("stop", str(ONE), "--force")
    assert holder(vgpud.places.pid_file(ONE)) is None
    assert not sockets(vgpud.places)
    assert vgpud.instances() == {}


def test_why_a_server_does_not_start_is_said(vgpud: Vgpud) -> None:
    define(vgpud)
    with listening(vgpud.places.socket(ONE)):
        says = vgpud.refusal("start", str(ONE))
    assert "another server is listening there; stop it or choose another path" in says
    assert holder(vgpud.places.pid_file(ONE)) is None
    assert says.removeprefix("vgpud: ") in vgpud.places.log(ONE).read_text()


def test_a_server_that_is_not_ready_in_time_is_ended(vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned, spawn = [], direct._spawn

    def remember(
        places: Places, uuid: UUID, output: ServerOutput, readiness: Readiness
    ) -> subprocess.Popen[bytes]:
        readiness.address += "-of-nobody"
        spawned.append(spawn(places, uuid, output, readiness))
        return spawned[0]

    monkeypatch.setattr(direct, "_spawn", remember)
    monkeypatch.setattr(direct, "START_SECONDS", 0.01)
    define(vgpud)
    assert "does not listen after 0 s; its log is " in vgpud.refusal("start", str(ONE))
    assert [process.returncode for process in spawned] == [-signal.SIGKILL]
    assert holder(vgpud.places.pid_file(ONE)) is None


def test_a_log_is_bounded_and_a_full_one_does_not_end_the_server(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    pid, log = pid_of(vgpud.places, ONE), vgpud.places.log(ONE)
    assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (MAX_LOG, MAX_LOG)
    full = log.stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, full))
    for _ in range(3):
        with attached(vgpud.places.socket(ONE)):
            pass
    with attached(vgpud.places.socket(ONE)):
        assert vgpud.instances()[str(ONE)]["client_attached"] is True
    assert log.stat().st_size == full


def test_those_that_start_by_themselves_are_started_together(vgpud: Vgpud) -> None:
    define(vgpud, "--auto", uuid=ONE)
    define(vgpud, uuid=TWO)
    define(vgpud, "--auto", uuid=THREE)
    vgpud.well("start", str(THREE))
    assert vgpud.well("start", "--auto") == f"{vgpud.places.socket(ONE)}\n"
    assert set(vgpud.instances()) == {str(ONE), str(THREE)}


def test_one_that_cannot_start_does_not_keep_the_others_from_it(vgpud: Vgpud) -> None:
    for uuid in (ONE, TWO):
        define(vgpud, "--auto", uuid=uuid)
    vgpud.places.definition(ONE).write_text("{")
    result = vgpud("start", "--auto")
    assert (result.status, result.out) == (1, f"{vgpud.places.socket(TWO)}\n")
    assert result.err.count("\n") == 1
    assert str(vgpud.places.definition(ONE)) in result.err


def test_the_sockets_of_one_instance_are_not_those_of_another_user(vgpud: Vgpud) -> None:
    define(vgpud)
    vgpud.well("start", str(ONE))
    assert vgpud.places.folder(ONE).stat().st_mode & 0o077 == 0
    assert vgpud.places.socket(ONE).stat().st_mode & 0o022 == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(vgpud.places.control(ONE)))
