"""QEMU and its servers as processes: they start in order, and end together, whoever ends first."""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import signal
import socket
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from protocol import Header, Version, encode_request
from tests.server.launch.fake_qemu import SECONDS, Launcher

KILLS = [order for count in (1, 2, 3) for order in itertools.permutations(("run", "server", "qemu"), count)]


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status_is_that_of_qemu(launcher: Launcher, status: int) -> None:
    with launcher.running() as guest:
        guest.qemu.does("exit", status)
        assert guest.ended() == (status, "", "")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL, signal.SIGTERM])
def test_the_exit_status_is_that_of_a_shell_where_a_signal_ended_qemu(
    launcher: Launcher, number: int
) -> None:
    with launcher.running() as guest:
        guest.qemu.does("die", number)
        assert guest.ended() == (128 + number, "", "")


def test_the_server_answers_by_the_time_that_qemu_starts(launcher: Launcher) -> None:
    with launcher.running() as guest:
        (path,) = guest.qemu.gpu_sockets
        reply = guest.qemu.asked("send", path, encode_request(7, Version(0, 0)).hex())["reply"]
        assert Header.unpack(bytes.fromhex(reply)).is_reply
        guest.qemu.does("exit", 0)
        assert guest.ended() == (0, "", "")


def test_nothing_is_on_the_file_system_while_a_guest_runs_nor_afterwards(launcher: Launcher) -> None:
    with launcher.running() as guest:
        assert not list(launcher.temporary.iterdir())
        guest.qemu.does("exit", 0)
        guest.ended()
        assert not list(launcher.temporary.iterdir())


def test_qemu_has_the_terminal_that_run_was_given(launcher: Launcher) -> None:
    with launcher.running(stdin=subprocess.PIPE) as guest:
        assert guest.run.stdin is not None
        guest.run.stdin.write("typed\n")
        guest.run.stdin.flush()
        assert guest.qemu.asked("echo") == {"ok": True}
        guest.qemu.does("exit", 0)
        assert guest.ended() == (0, "TYPED\n", "complaint\n")


def test_qemu_inherits_what_run_has_inherited_and_the_server_does_not(launcher: Launcher) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, launcher.running(pass_fds=[theirs.fileno()]) as guest:
        assert guest.qemu.asked("fds", theirs.fileno()) == {"open": [theirs.fileno()]}
        inode = os.fstat(theirs.fileno()).st_ino
        (server,) = guest.server_pids
        files = [str(file.readlink()) for file in Path(f"/proc/{server}/fd").iterdir()]
        assert f"socket:[{inode}]" not in files
        guest.qemu.does("exit", 0)
        guest.ended()


def test_each_gpu_has_a_server_of_its_own(launcher: Launcher) -> None:
    with launcher.running("--gpu", "virtio-gpu,width=800", "--gpu", "virtio-gpu") as guest:
        assert len(set(guest.server_pids)) == 2
        paths = guest.qemu.gpu_sockets
        assert len(set(paths)) == 2
        for path in paths:
            assert guest.qemu.asked("send", path, encode_request(7, Version(0, 0)).hex())["reply"]
        guest.qemu.does("exit", 0)
        assert guest.ended() == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_run_reaches_qemu_once(launcher: Launcher, number: int) -> None:
    with launcher.running() as guest:
        guest.run.send_signal(number)
        assert guest.qemu.hears() == {"signal": number}
        guest.qemu.does("exit", 5)
        assert guest.qemu.hears() is None
        assert guest.ended() == (5, "", "")


def test_control_c_reaches_qemu_once_and_no_server(launcher: Launcher) -> None:
    ours, terminal = os.openpty()
    with launcher.running(
        stdin=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as guest:
        guest.run.send_signal(signal.SIGSTOP)  # until QEMU has had its own: two that are pending would be one
        os.write(ours, b"\x03")
        assert guest.qemu.hears() == {"signal": signal.SIGINT}
        guest.run.terminate()
        guest.run.send_signal(signal.SIGCONT)
        assert guest.qemu.hears() == {"signal": signal.SIGTERM}
        guest.qemu.does("exit", 0)
        assert guest.qemu.hears() is None
        assert guest.ended() == (0, "", "")
    os.close(ours)
    os.close(terminal)


def test_a_signal_that_run_ignores_is_ignored_by_qemu_as_well(launcher: Launcher) -> None:
    with launcher.running(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as guest:
        assert guest.qemu.ignored == [signal.SIGHUP]
        guest.qemu.does("exit", 0)
        guest.ended()


def test_qemu_starts_with_no_signal_held_back(launcher: Launcher) -> None:
    with launcher.running() as guest:
        assert guest.qemu.blocked == []
        guest.qemu.does("exit", 0)
        guest.ended()


def test_qemu_is_ended_when_its_server_is_gone_and_one_line_says_so(launcher: Launcher) -> None:
    with launcher.running() as guest:
        guest.qemu.asked("end at", signal.SIGTERM)
        os.kill(guest.server_pids[0], signal.SIGKILL)
        assert guest.qemu.hears() == {"signal": signal.SIGTERM}
        line = "vgpud: the server of vgpud0 ended first, with status 137; QEMU is told to end\n"
        assert guest.ended() == (1, "", line)


@pytest.mark.parametrize("transport", ["native", "libvfio-user"])
def test_the_server_of_a_gpu_that_was_unplugged_ends_and_qemu_goes_on(
    launcher: Launcher, transport: str
) -> None:
    with launcher.running("--transport", transport, "--gpu", "virtio-gpu", "--gpu", "edu") as guest:
        path, _ = guest.qemu.gpu_sockets
        assert guest.qemu.asked("send", path, encode_request(7, Version(0, 0)).hex())["reply"]
        assert guest.qemu.asked("leave") == {"ok": True}
        ended, _, _ = select.select(guest.server_pidfds, [], [], SECONDS)
        assert len(ended) == 1
        assert guest.qemu.asked("fds") == {"open": []}
        guest.qemu.does("exit", 3)
        assert guest.ended() == (3, "", "")


@pytest.mark.parametrize("transport", ["native", "libvfio-user"])
@pytest.mark.parametrize("connected", [True, False])
def test_qemu_is_ended_also_where_its_server_was_told_to_end(
    launcher: Launcher, transport: str, connected: bool
) -> None:
    with launcher.running("--transport", transport) as guest:
        guest.qemu.asked("end at", signal.SIGTERM)
        (path,) = guest.qemu.gpu_sockets
        if connected:
            assert guest.qemu.asked("send", path, encode_request(7, Version(0, 0)).hex())["reply"]
        os.kill(guest.server_pids[0], signal.SIGTERM)
        assert guest.qemu.hears() == {"signal": signal.SIGTERM}
        line = "vgpud: the server of vgpud0 ended first, with status 143; QEMU is told to end\n"
        assert guest.ended() == (1, "", line)


def test_metrics_of_each_gpu_are_at_an_address_of_their_own(launcher: Launcher) -> None:
    address = f"unix:{launcher.folder}/m.sock"
    with launcher.running("--metrics", address, "--gpu", "virtio-gpu", "--gpu", "edu") as guest:
        for number, device in enumerate(("virtio-gpu", "edu")):
            with socket.socket(socket.AF_UNIX) as scraper:
                scraper.settimeout(SECONDS)
                scraper.connect(f"{launcher.folder}/m-{number}.sock")
                scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: vgpud\r\nConnection: close\r\n\r\n")
                text = scraper.makefile().read()
            assert f'vgpud_sessions_total{{device="{device}",transport="native"}} 0' in text
        guest.qemu.does("exit", 0)
        assert guest.ended() == (0, "", "")
    assert not list(launcher.folder.glob("m-*"))


def test_all_is_told_to_end_at_once_without_a_complaint(launcher: Launcher) -> None:
    with launcher.running() as guest:
        guest.run.terminate()
        assert guest.qemu.hears() == {"signal": signal.SIGTERM}
        os.kill(guest.server_pids[0], signal.SIGTERM)
        assert guest.qemu.hears() == {"signal": signal.SIGTERM}
        guest.qemu.does("exit", 0)
        assert guest.ended() == (0, "", "")


@pytest.mark.parametrize("order", KILLS, ids="-".join)
def test_whoever_is_killed_nothing_is_left(launcher: Launcher, order: tuple[str, ...]) -> None:
    with launcher.running() as guest:
        guest.qemu.asked("end at", signal.SIGTERM)
        pids = {"run": guest.run.pid, "server": guest.server_pids[0], "qemu": guest.qemu.pid}
        for name in order:
            with suppress(ProcessLookupError):  # it has ended with the one before it
                os.kill(pids[name], signal.SIGKILL)
        guest.ended()
        assert not list(launcher.temporary.iterdir())


@pytest.mark.parametrize("victim", ["run", "server", "qemu"])
def test_whoever_is_killed_the_sockets_for_others_go_too(launcher: Launcher, victim: str) -> None:
    control, metrics = launcher.folder / "control", launcher.folder / "metrics"
    with launcher.running("--control", str(control), "--metrics", f"unix:{metrics}") as guest:
        assert control.is_socket()
        assert metrics.is_socket()
        guest.qemu.asked("end at", signal.SIGTERM)
        pids = {"run": guest.run.pid, "server": guest.server_pids[0], "qemu": guest.qemu.pid}
        os.kill(pids[victim], signal.SIGKILL)
        guest.ended()
        assert not control.exists()
        assert not metrics.exists()


def test_a_server_outlives_run_for_as_long_as_qemu_needs_it(launcher: Launcher) -> None:
    with launcher.running() as guest:
        guest.run.kill()
        assert guest.qemu.hears() == {"signal": signal.SIGTERM}
        (path,) = guest.qemu.gpu_sockets
        assert guest.qemu.asked("send", path, encode_request(7, Version(0, 0)).hex())["reply"]
        guest.qemu.does("exit", 0)
        guest.ended()


HANGING_SERVER = """
import os, signal, socket, sys
if "--fd" in sys.orig_argv:
    test = socket.socket(socket.AF_UNIX)
    test.connect(os.environ["FAKE_QEMU"])
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_qemu_starts_ends_all_that_has_started(launcher: Launcher, number: int) -> None:
    (launcher.folder / "sitecustomize.py").write_text(HANGING_SERVER)
    with launcher.start(variables={"PYTHONPATH": str(launcher.folder)}) as run:
        server = launcher.accept()
        run.send_signal(number)
        assert run.communicate(timeout=SECONDS) == ("", "")
        assert run.returncode == 128 + number
        assert server.recv(1) == b""
        server.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--gpu", "nothing"], "vgpud: --gpu nothing: unknown device 'nothing'; there are: virtio-gpu"),
        (["--gpu", "virtio-gpu,width=wide"], "vgpud: --gpu virtio-gpu,width=wide: virtio-gpu: width="),
        (["--metrics", "nowhere"], "vgpud: --metrics nowhere: no address"),
        (["--control", "/no/such/folder/control"], "vgpud: /no/such/folder/control: "),
        (["--log", "/no/such/folder/log"], "vgpud: --log /no/such/folder/log: No such file"),
    ],
)
def test_a_server_that_does_not_start_says_why_and_qemu_is_not_started(
    launcher: Launcher, options: list[str], reason: str
) -> None:
    run = launcher.start(*options)
    out, said = run.communicate(timeout=SECONDS)
    assert (run.returncode, out) == (1, "")
    assert said.startswith(reason)
    assert said.count("\n") == 1


def test_a_server_that_does_not_start_says_why_also_where_it_has_a_log(launcher: Launcher) -> None:
    log = launcher.folder / "log"
    run = launcher.start("--metrics", "nowhere", "--log", str(log))
    _, said = run.communicate(timeout=SECONDS)
    assert said.startswith("vgpud: the server of vgpud0 did not start: --metrics nowhere: no address")
    assert said.count("\n") == 1
    assert "no address" in log.read_text()


SAYS_NOTHING = """
import os, sys
if "--fd" in sys.orig_argv:
    os._exit(3)
"""
SAYS_SOMETHING_ELSE = """
import os, socket, sys
if "--fd" in sys.orig_argv:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.sendto(b"STATUS=starting", os.environ["NOTIFY_SOCKET"])
    with socket.socket(socket.AF_UNIX) as test:
        test.connect(os.environ["FAKE_QEMU"])
        test.recv(1)
    os._exit(3)
"""


def test_a_server_is_not_quoted_with_what_another_has_said_before_it(launcher: Launcher) -> None:
    (launcher.folder / "sitecustomize.py").write_text(SAYS_NOTHING)
    log = launcher.folder / "log"
    log.write_text("vgpud: said last week\n")
    run = launcher.start("--log", str(log), variables={"PYTHONPATH": str(launcher.folder)})
    assert run.communicate(timeout=SECONDS) == (
        "",
        "vgpud: the server of vgpud0 did not start: it has ended without a word\n",
    )
    assert run.returncode == 1
    assert log.read_text() == "vgpud: said last week\n"


def test_qemu_is_not_started_because_a_server_says_anything(launcher: Launcher) -> None:
    (launcher.folder / "sitecustomize.py").write_text(SAYS_SOMETHING_ELSE)
    with launcher.start(variables={"PYTHONPATH": str(launcher.folder)}) as run:
        launcher.accept().close()  # the server goes on, which is to say that it ends
        assert run.communicate(timeout=SECONDS) == ("", "vgpud: the server of vgpud0 ended with status 3\n")
        assert run.returncode == 1


def test_each_server_writes_files_of_its_own(launcher: Launcher) -> None:
    files = {name: launcher.folder / f"gpu.{name}" for name in ("control", "trace", "log")}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    with launcher.running(*options, "--gpu", "virtio-gpu", "--gpu", "edu") as guest:
        for path in guest.qemu.gpu_sockets:
            guest.qemu.asked("send", path, encode_request(7, Version(0, 0)).hex())
        for name, file in files.items():
            assert not file.exists()
            assert (launcher.folder / f"gpu-0.{name}").exists()
            assert (launcher.folder / f"gpu-1.{name}").exists()
        guest.qemu.does("exit", 0)
        assert guest.ended() == (0, "", "")
    assert "device=virtio-gpu" in (launcher.folder / "gpu-0.log").read_text()
    assert "device=edu" in (launcher.folder / "gpu-1.log").read_text()
