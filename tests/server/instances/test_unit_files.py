"""The unit files in ``systemd/``: as systemd reads them, and as the program takes them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from server.child_server.readiness import START_SECONDS
from server.cli import build_parser
from server.instances.direct import STOP_SECONDS
from server.instances.places import SYSTEM_DEFINITIONS, SYSTEM_RUNTIME, Places
from server.instances.systemd import SECONDS
from tests.server.instances.command import ONE

FOLDER = Path(__file__).parents[3] / "systemd"
SERVICE, SOCKET = FOLDER / "vgpud@.service", FOLDER / "vgpud@.socket"
UNITS = (SERVICE, SOCKET)
PLACES = Places(SYSTEM_DEFINITIONS, SYSTEM_RUNTIME)
MAX_EXPOSURE = 5
"""Tenths, of 100 for a service without any restriction."""


def settings(unit: Path) -> dict[str, list[str]]:
    """All values of each setting, with this instance's name."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found[match[1]].append(match[2].replace("%i", str(ONE)))
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """The units in a folder of their own, with a program that is there."""
    program = tmp_path / "vgpud"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS:
        text = unit.read_text().replace("ExecStart=vgpud ", f"ExecStart={program} ")
        (tmp_path / unit.name).write_text(text)
    return [str(tmp_path / unit.name) for unit in UNITS]


def test_systemd_understands_every_line(installed: list[str]) -> None:
    done = analyze("verify", "--man=no", *installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_would_say_what_it_does_not_understand(installed: list[str]) -> None:
    service = Path(installed[0])
    service.write_text(service.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    said = analyze("verify", "--man=no", *installed).stderr
    assert re.search("Unknown key (name )?'NoNewPrivilege'", said)


def test_a_server_is_exposed_to_next_to_nothing() -> None:
    done = analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", str(SERVICE))
    assert done.returncode == 0, done.stdout


def test_a_server_without_its_sandbox_would_be_found_out(tmp_path: Path) -> None:
    bare = tmp_path / SERVICE.name
    bare.write_text(re.sub(r"(?m)^(Private|Protect|Restrict|SystemCall|Capab).*\n", "", SERVICE.read_text()))
    assert analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", str(bare)).returncode != 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("PrivateNetwork", "yes"),
        ("RestrictAddressFamilies", "AF_UNIX"),
        ("MemoryDenyWriteExecute", "yes"),
        ("DynamicUser", "yes"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_a_server_is_restricted(setting: str, value: str) -> None:
    assert settings(SERVICE)[setting] == [value]


def test_the_service_runs_a_command_that_there_is_on_the_folders_of_root() -> None:
    (command,) = settings(SERVICE)["ExecStart"]
    program, *words = shlex.split(command)
    assert program == "vgpud"
    arguments = build_parser().parse_args(words)
    assert arguments.uuid == str(ONE)
    assert Places(arguments.config_dir, arguments.runtime_dir) == PLACES
    assert callable(arguments.handler)


def test_the_units_and_the_program_mean_the_same_files() -> None:
    service, socket = settings(SERVICE), settings(SOCKET)
    assert socket["ListenStream"] == [str(PLACES.socket(ONE))]
    assert socket["ConditionPathExists"] == [str(PLACES.definition(ONE))]
    assert service["RuntimeDirectory"] == [str(PLACES.folder(ONE).relative_to("/run"))]
    assert service["RuntimeDirectoryMode"] == ["0700"]


def test_the_service_has_its_socket_and_says_when_it_is_ready() -> None:
    service = settings(SERVICE)
    assert service["Requires"] == service["After"] == [f"vgpud@{ONE}.socket"]
    assert service["Type"] == ["notify"]


def test_the_service_has_as_much_time_as_a_server_without_systemd() -> None:
    service = settings(SERVICE)
    assert service["TimeoutStartSec"] == [f"{START_SECONDS:.0f}"]
    assert service["TimeoutStopSec"] == [f"{STOP_SECONDS:.0f}"]


def test_systemctl_has_more_time_than_a_service_that_ends_and_starts() -> None:
    service = settings(SERVICE)
    (start,), (stop,) = service["TimeoutStartSec"], service["TimeoutStopSec"]
    ending = 2 * int(stop)  # systemd.service(5): behind SIGTERM, and again behind SIGKILL
    assert ending + int(start) < SECONDS


def test_the_socket_is_for_a_group_and_not_for_the_world() -> None:
    socket = settings(SOCKET)
    assert (socket["SocketGroup"], socket["SocketMode"]) == (["kvm"], ["0660"])
    assert socket["WantedBy"] == ["sockets.target"]
