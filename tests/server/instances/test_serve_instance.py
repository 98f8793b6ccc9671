"""``vgpud serve-instance``: from a definition to a server, on a socket of its own or one that is passed to it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from server.cli import build_parser
from server.guest.child import started
from server.instances.definition import Definition
from server.instances.errors import InstanceError
from server.instances.pid_file import holder
from server.instances.places import Places
from server.instances.serve_instance import passed_listener, serve_command
from server.instances.store import Store
from server.instances.types import find_type
from server.metrics.listen import listening
from tests.server.instances.command import ONE, Vgpud, attached, held_by_another

ROOT = Path(__file__).parents[3]
DEFINITION = Definition(ONE, find_type("vgpud-virtio-4"), attrs={"edid": "off"}, transport="native")


def serve_instance(places: Places, name: str = str(ONE)) -> list[str]:
    folders = ["--config-dir", str(places.definitions), "--runtime-dir", str(places.runtime)]
    return [sys.executable, "-m", "server", "serve-instance", name, *folders]


def test_a_definition_becomes_a_command_line_that_serve_takes(places: Places) -> None:
    arguments = build_parser().parse_args(serve_command(DEFINITION, places, None))
    assert (arguments.socket_path, arguments.fd) == (places.socket(ONE), None)
    assert arguments.control == places.control(ONE)
    assert arguments.device == "virtio-gpu,scanouts=2,width=1920,height=1080,max_hostmem=256M,edid=off"
    assert arguments.transport == "native"


def test_an_instance_without_metrics_does_not_listen_for_them(places: Places) -> None:
    assert build_parser().parse_args(serve_command(DEFINITION, places, None)).metrics is None


def test_an_instance_with_metrics_has_them_in_its_folder_for_who_reaches_it(places: Places) -> None:
    definition = replace(DEFINITION, metrics=True)
    arguments = build_parser().parse_args(serve_command(definition, places, 3))
    places.folder(ONE).mkdir(parents=True)
    with listening(arguments.metrics):
        assert places.metrics(ONE).is_socket()
        assert places.metrics(ONE).stat().st_mode & 0o777 == 0o666
    assert places.metrics(ONE).parent == places.folder(ONE)


def test_a_socket_that_is_passed_is_served(places: Places) -> None:
    arguments = build_parser().parse_args(serve_command(DEFINITION, places, 3))
    assert (arguments.socket_path, arguments.fd) == (None, 3)


@pytest.mark.parametrize(
    ("environ", "fd"),
    [
        ({}, None),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}, 3),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, None),
        ({"LISTEN_FDS": "1"}, None),
    ],
)
def test_sockets_are_for_the_process_that_they_were_passed_to(
    environ: dict[str, str], fd: int | None
) -> None:
    """sd_listen_fds(3): and the variables are not for its children."""
    environ["PATH"] = "/bin"
    assert passed_listener(environ, 7) == fd
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("count", ["0", "2", "many"])
def test_more_or_fewer_sockets_than_one_are_refused(count: str) -> None:
    with pytest.raises(InstanceError, match=f"LISTEN_FDS is {count}; pass one socket"):
        passed_listener({"LISTEN_PID": "7", "LISTEN_FDS": count}, 7)


async def test_the_first_client_starts_an_instance_whose_socket_systemd_has(places: Places) -> None:
    """systemd's own program for it passes the socket, as its units do."""
    Store(places.definitions).add(DEFINITION)
    places.runtime.mkdir()
    activate = ["systemd-socket-activate", "--listen", str(places.socket(ONE))]
    environment = [f"--setenv=PYTHONPATH={ROOT}"]
    async with started("socket", [*activate, *environment, *serve_instance(places)]) as child:
        await child.log.wait_for("Listening on", within=120)
        with ExitStack() as stack:
            stack.enter_context(attached(places.socket(ONE)))
            assert holder(places.pid_file(ONE)) == child.pid
            assert places.control(ONE).is_socket()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (str(ONE).replace("-8", "-A"), "is no UUID in lower case; write it as"),
        ("../x", "is no UUID in lower case"),
        (str(ONE), "is not defined; 'vgpud list --defined' lists what is"),
    ],
)
def test_what_is_not_defined_is_not_served(places: Places, name: str, says: str) -> None:
    done = subprocess.run(
        serve_instance(places, name), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vgpud: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_an_instance_that_runs_is_not_served_twice(vgpud: Vgpud) -> None:
    Store(vgpud.places.definitions).add(DEFINITION)
    with held_by_another(vgpud.places.pid_file(ONE)) as pid:
        vgpud.places.folder(ONE).chmod(0o700)
        assert f"it is running already, as process {pid}" in vgpud.refusal("serve-instance", str(ONE))


def test_a_folder_that_somebody_else_prepared_is_not_used(vgpud: Vgpud) -> None:
    Store(vgpud.places.definitions).add(DEFINITION)
    vgpud.places.folder(ONE).mkdir(parents=True)
    os.chmod(vgpud.places.folder(ONE), 0o777)  # noqa: S103, PTH101
    assert "not a folder of this user's alone; remove it" in vgpud.refusal("serve-instance", str(ONE))
